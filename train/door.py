"""What a command line, or a YAML file from a stranger, must not do: have Hydra call functions of its own choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

PLUGINS = ("hydra.launcher._target_", "hydra.sweeper._target_")
"""Where Hydra names its own plugins."""
OWN = ("hydra._internal.", "hydra_plugins.")
HANDLERS = "logging."
"""Where classes of log handlers come from."""


def guard() -> None:
    """Have every config that Hydra loads looked at before anything is done with it: it makes callbacks, launchers and
    log handlers before a program sees its config, by whatever name stands there."""
    if getattr(ConfigLoaderImpl.load_configuration, "is_guarded", False):
        return
    original = ConfigLoaderImpl.load_configuration

    def load_configuration(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        config = original(self, *args, **kwargs)
        require_harmless(OmegaConf.to_container(config, resolve=False))
        return config

    load_configuration.is_guarded = True  # type: ignore[attr-defined]
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]


def require_harmless(config: Any) -> None:
    """Check a composed config, Hydra's own part too.

    Raises:
        HydraException: it names something to be called that is neither Hydra's own nor the standard library's logging.
    """
    for place, value in _leaves(config):
        key = place.rpartition(".")[2]
        harmless = (
            place in PLUGINS and str(value).startswith(OWN)
            if key == "_target_"
            else key not in ("()", "_partial_", "_convert_", "_recursive_")
            and not (key == "class" and place.startswith("hydra.") and not str(value).startswith(HANDLERS))
            and not place.startswith("hydra.callbacks.")
        )
        if not harmless:
            raise HydraException(
                f"{place}={value}: a config must not name what is called, for it may come from a stranger; leave it out"
            )


def _leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with the dotted name of its place."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{place}.{key}".lstrip("."))
    elif isinstance(node, list) and node:
        for index, value in enumerate(node):
            yield from _leaves(value, f"{place}.{index}")
    else:
        yield place, node
