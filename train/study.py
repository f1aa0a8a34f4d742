"""`python -m train.study`: which non-ideality costs how much, how large each may be, the cheapest circuit that is good
enough, and which layers and heads mind most; on one checkpoint, without training."""

from __future__ import annotations

from .command import command_line
from .study_schema import StudyConfig


def study(settings: StudyConfig) -> None:
    """Estimate, measure what is not there yet, show, and write study.json and CSV files after each part.

    Raises:
        RunError: no such checkpoint, field or part, a study too large for disk or time, or no write permission.
    """
    from . import study_run, tables  # seconds to import; a wrong config is refused before that
    from .files import require_writable
    from .lock import one_job
    from .study_model import put_on_arrays

    say, folder = tables.terminal(), settings.folder
    require_writable(folder)
    with one_job(folder, say):
        put_on_arrays(settings, say)
        with study_run.opened(settings) as work:
            study_run.execute(work, settings, say)
    say(f"Results are in {folder}; one page of them: python -m train.report_page study={folder}")


main = command_line("study", StudyConfig, study)

if __name__ == "__main__":
    main()
