"""`python -m train.characterise`: what models cost to run by length, and what they would with gain cells."""

from __future__ import annotations

from .characterise_config import CharacteriseConfig
from .command import command_line


def characterise(settings: CharacteriseConfig) -> None:
    """Measure every model at every length, show the tables, write characterisation.json, .csv and .png; what is
    measured of a run that is stopped stands in characterisation.so_far.csv.

    Raises:
        RunError: no such model, no GPU where one is asked for, or no write permission.
    """
    from . import characterisation, tables  # seconds to import; a wrong config is refused before that
    from .files import require_writable
    from .lock import one_job

    say, folder = tables.terminal(width=160), settings.folder
    subjects = characterisation.subjects(settings)
    require_writable(folder)
    with one_job(folder, say):
        characterisation.run(settings, subjects, say)
    say(f"Results and figure are in {folder}.")


main = command_line("characterise", CharacteriseConfig, characterise)

if __name__ == "__main__":
    main()
