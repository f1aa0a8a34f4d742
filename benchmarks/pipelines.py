"""The pipeline's config from the words of a command line, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.schema import RunConfig


def run_config(words: Sequence[str]) -> RunConfig:
    """What `python -m train` with these words is given."""
    from hydra import compose, initialize_config_dir

    from train.command import CONF
    from train.configs import checked, register
    from train.schema import RunConfig

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return checked(compose("run", overrides=list(words)), RunConfig)
