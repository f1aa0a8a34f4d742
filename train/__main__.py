"""`python -m train`: the pipeline, or one stage of it, by Hydra."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from .command import launch, run_command
from .configs import checked, register
from .schema import RunConfig

register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="run")
def main(config: DictConfig) -> None:
    """Compose, check, run."""

    def work() -> None:
        settings = checked(config, RunConfig)
        from . import pipeline, report  # seconds to import; a wrong config is refused before that

        pipeline.execute(settings, report.terminal())

    run_command(work)


if __name__ == "__main__":
    launch(main)
