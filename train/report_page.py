"""`python -m train.report_page`: one HTML page of a study, self-contained, with PNG and CSV of its charts beside it."""

from __future__ import annotations

from .command import command_line
from .study_schema import PageConfig


def report(settings: PageConfig) -> None:
    """Write the page and what lies beside it.

    Raises:
        RunError: no study there, results of another version, or no write permission.
    """
    from . import page, tables  # seconds to import; a wrong config is refused before that
    from .files import require_writable
    from .lock import one_job

    say, folder = tables.terminal(), settings.folder
    studies = page.studies_of(settings)
    require_writable(folder)
    with one_job(folder, say):
        written = page.write(settings, studies, say)
    say(f"The page is {written}; PNG and CSV of its charts are in {folder / page.CHARTS}.")


main = command_line("page", PageConfig, report)

if __name__ == "__main__":
    main()
