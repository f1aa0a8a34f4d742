"""What goes onto static tiles, and with which configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from aimc.hardware import ConfigError
from aimc.static.install import require_aihwkit
from aimc.static.presets import PRESETS


@dataclass(slots=True, kw_only=True)
class Static:
    """Which layers of a model static tiles hold; patterns are shell wildcards over full module names."""

    rpu_config: Any = "pcm"
    """An aihwkit configuration, or the name of a preset: `pcm`, `reram`, `noiseless`."""
    layers: Collection[str] | None = None
    """Patterns of the linear layers to convert, e.g. `*.mlp.*`; None: every `Linear` and `Conv1D` but the head."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Pattern to another configuration or preset, for the layers it matches; the first match counts."""
    head: bool = False
    """True: the language-model head as well; weights that it shares with the embedding are parted."""
    embeddings: bool = False
    """True: the token embedding as well, read by one-hot inputs; weights that it shares with the head are parted."""

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise ConfigError(
                f"static.layers={self.layers!r}: a collection of patterns is needed; give [{self.layers!r}]"
            )

    def config_of(self, name: str) -> Any:
        """The aihwkit configuration of the layer `name`.

        Raises:
            ConfigError: no preset of that name, or no configuration for inference tiles.
            MissingAihwkit: aihwkit is not installed.
        """
        return resolve(
            next((config for pattern, config in self.overrides.items() if fnmatchcase(name, pattern)), self.rpu_config)
        )

    def wants(self, name: str) -> bool:
        """Whether the linear layer `name`, which is not the head, is to be converted."""
        return self.layers is None or any(fnmatchcase(name, pattern) for pattern in self.layers)


def resolve(config: Any) -> Any:
    """A preset's name as its configuration; a configuration as it is.

    Raises:
        ConfigError: neither.
        MissingAihwkit: aihwkit is not installed.
    """
    require_aihwkit()
    from aihwkit.simulator.configs import InferenceRPUConfig

    if isinstance(config, str):
        if config not in PRESETS:
            raise ConfigError(
                f"static={config}: no such preset; use one of {', '.join(PRESETS)}, or an aihwkit configuration"
            )
        return PRESETS[config]()
    if not isinstance(config, InferenceRPUConfig):
        raise ConfigError(
            f"static={type(config).__name__}: tiles that are programmed once need an aihwkit inference configuration,"
            " with a noise model and drift; use TorchInferenceRPUConfig, one derived from it, or a preset"
            f" ({', '.join(PRESETS)})"
        )
    return config


def as_static(static: Any) -> Static:
    """What `aimc.convert` is given, as :class:`Static`."""
    return static if isinstance(static, Static) else Static(rpu_config=static)
