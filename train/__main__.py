"""`python -m train`: the pipeline, or one stage of it, by Hydra."""

from __future__ import annotations

from .command import command_line
from .schema import RunConfig


def work(settings: RunConfig) -> None:
    """Run the stages, and report."""
    from . import pipeline, tables  # seconds to import; a wrong config is refused before that

    pipeline.execute(settings, tables.terminal())


main = command_line("run", RunConfig, work)

if __name__ == "__main__":
    main()
