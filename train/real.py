"""`python -m train.real`: a pretrained model on gain-cell arrays without training: what each effect costs, and what
each remedy buys."""

from __future__ import annotations

from .command import command_line
from .schema import RealConfig


def real(settings: RealConfig) -> None:
    """Calibrate and measure each row, show the table as it grows, write results.json and table.md after each.

    Raises:
        RunError: no such model, unusable text, an unknown row, or no write permission.
    """
    from . import real_table, tables  # seconds to import; a wrong config is refused before that
    from .files import require_writable
    from .lock import one_job

    say, folder = tables.terminal(), settings.folder
    real_table.require_rows(settings.rows)
    require_writable(folder)
    with one_job(folder, say):
        real_table.measure(settings, say)
    say(f"Results are in {folder}.")


main = command_line("real", RealConfig, real)

if __name__ == "__main__":
    main()
