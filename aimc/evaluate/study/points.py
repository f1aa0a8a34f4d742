"""What a study measures: a machine with its noise, on some chips. The same content has the same key, whoever asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aimc.hardware import ConfigError, Hardware, Noise

FORMAT = 2
"""Raised when what is measured changes, so that no earlier number is taken for a new one."""
MOVED = 2
"""The same for points that are moved."""
ROOTS = ("hardware", "nonideality", "digital_layers")
"""What a path of a grid may begin with."""


@dataclass(slots=True, kw_only=True)
class Point:
    """One machine to measure."""

    hardware: Hardware
    """The machine, its noise included."""
    label: str = ""
    """What it is called; not part of its content."""
    analog: dict[int, list[bool]] | None = None
    """For each layer, which of its query heads are on `hardware`; the others are on `rest`. None: all of them."""
    rest: Hardware | None = None
    """The machine of the other heads."""
    diverges: bool = False
    """Whether the divergence from the bench's reference is measured too."""
    moved: bool = False
    """Whether scalers follow another range of stored voltages and are matched to the model's own statistics."""
    trained: bool = False
    """Whether the model is trained on this machine for the bench's few steps before it is measured."""

    def content(self) -> dict[str, Any]:
        """Everything that the numbers depend on, besides model, text and chip."""
        return {
            "hardware": self.hardware.to_dict(),
            "analog": self.analog,
            "rest": None if self.rest is None else self.rest.to_dict(),
            "diverges": self.diverges,
            "moved": MOVED if self.moved else False,
            "trained": self.trained,
        }


def key_of(subject: Mapping[str, Any], point: Point, chip: int) -> str:
    """The content hash of one measurement: what is measured, on which machine, on which chip."""
    content = {"format": FORMAT, "subject": dict(subject), "point": point.content(), "chip": chip}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(slots=True, kw_only=True)
class Setup:
    """Where the points of a grid start: a machine without its noise, noise, layers that stay on ideal arrays."""

    hardware: Hardware
    nonideality: Noise = field(default_factory=Noise)
    digital_layers: list[int] = field(default_factory=list)
    """Indices of layers whose attention stays on ideal arrays."""

    @property
    def machine(self) -> Hardware:
        """The hardware with the noise."""
        return replace(self.hardware, noise=self.nonideality)

    def changed(self, changes: Mapping[str, Any]) -> Setup:
        """This setup with the fields at some paths changed, all at once, so that fields that depend on each other can
        move together.

        Args:
            changes: value by path, such as `hardware.readout.n_levels`, `nonideality.write_v`, `digital_layers`.

        Raises:
            ConfigError: a path that leads nowhere, or a value that no device can have.
        """
        hardware, noise = self.hardware.to_dict(), {name: getattr(self.nonideality, name) for name in Noise.__slots__}
        digital_layers = self.digital_layers
        for path, value in changes.items():
            root, *rest = path.split(".")
            if root == "hardware" and rest[:1] == ["noise"]:
                raise ConfigError(
                    f"{path}: the noise of a study is its nonideality, in place of the hardware's own, so nothing would"
                    f" change; use {'.'.join(['nonideality', *rest[1:]])}"
                )
            if root == "hardware" and rest:
                _set(hardware, rest, value, path)
            elif root == "nonideality" and rest:
                _set(noise, rest, value, path)
            elif path == "digital_layers":
                if not isinstance(value, (list, tuple)):
                    raise ConfigError(
                        f"digital_layers={value!r}: a value is a list of layers; write digital_layers:[[0],[0,1]]"
                    )
                digital_layers = list(value)
            else:
                raise ConfigError(
                    f"{path}: no such field, so nothing would change; begin with {', '.join(ROOTS)}, such as"
                    " hardware.readout.n_levels"
                )
        return Setup(hardware=Hardware.from_dict(hardware), nonideality=Noise(**noise), digital_layers=digital_layers)


def _set(fields: dict[str, Any], path: Sequence[str], value: Any, whole: str) -> None:
    *way, last = path
    for name in way:
        inner = fields.get(name)
        if not isinstance(inner, dict):
            raise _unknown(fields, name, whole)
        fields = inner
    if last not in fields or last == "version":
        raise _unknown(fields, last, whole)
    fields[last] = value


def _unknown(fields: Mapping[str, Any], name: str, whole: str) -> ConfigError:
    known = ", ".join(key for key in fields if key != "version")
    return ConfigError(f"{whole}: there is no field {name!r}, so nothing would change; there are {known}")
