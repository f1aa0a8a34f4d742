"""What the hardware is, as typed values in SI units: the only way the rest of the package is told about a device.

Standard library only. Numbers of real devices live in :mod:`aimc.presets`; the defaults here are the off values, so that
`Hardware()` is the machine without any non-ideality except the clip ranges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from aimc.config_checks import ConfigError, require, require_choice, require_positive
from aimc.converter import CODINGS, Converter
from aimc.nonideality import Noise

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "CODINGS",
    "GRADIENTS",
    "HARDWARE_VERSION",
    "Array",
    "Cell",
    "ConfigError",
    "Converter",
    "Hardware",
    "Leakage",
    "Noise",
    "Protection",
]

HARDWARE_VERSION = 3
"""Raised whenever fields change; written into every checkpoint. Version 2 added the softmax activation, protection and step latency;
version 3 the leak target, the spread of retention times and the converters' nonlinearity."""

GRADIENTS = ("exact", "linear")
ACTIVATIONS = ("hard_sigmoid", "softmax")
BACKENDS = ("auto", "eager", "blocked", "triton")

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Cell:
    """One gain cell: charge per unit pulse as a polynomial of the stored voltage about its rest, ``p(u) = Σ c_i·u^i``."""

    supply_v: float = 0.9
    """Supply V_DD in volt: the largest voltage that can be stored."""
    offset_v: float = 0.45
    """Rest voltage V_o in volt: where the cell gives (nearly) no charge, and to which it leaks unless `leakage.target_v` says otherwise."""
    coefficients: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """c_0, c_1, … in signal units per volt^i, lowest power first; any degree. Two numbers with c_0 = 0 are a linear cell."""
    gradient: str = "exact"
    """`exact`: the derivative of p; `linear`: the surrogate that treats the cell as `surrogate_slope·u` in the backward pass."""
    surrogate_slope: float = 1.0
    """Slope of the surrogate gradient in signal units per volt; used only where `gradient` is `linear`."""

    def __post_init__(self) -> None:
        self.coefficients = [float(c) for c in self.coefficients]
        require_positive("cell.supply_v", self.supply_v, "volt")
        require(
            0 <= self.offset_v <= self.supply_v,
            "cell.offset_v",
            self.offset_v,
            f"must lie between 0 and cell.supply_v={self.supply_v}",
            "half the supply is usual",
        )
        require(
            len(self.coefficients) >= 2 and all(map(math.isfinite, self.coefficients)),
            "cell.coefficients",
            self.coefficients,
            "a cell needs at least c_0 and c_1, all finite",
            "give them lowest power first, or fit a curve with aimc.circuit.fit_transfer",
        )
        require(
            any(c != 0 for c in self.coefficients[1:]),
            "cell.coefficients",
            self.coefficients,
            "the charge does not depend on the stored voltage",
            "give at least one non-zero coefficient above c_0",
        )
        require_choice("cell.gradient", self.gradient, GRADIENTS)
        require_positive("cell.surrogate_slope", self.surrogate_slope, "signal units per volt")


@dataclass(slots=True, kw_only=True)
class Leakage:
    """Stored voltages relax exponentially, `V(Δ) = V_t + (V(0) − V_t)·exp(−Δ/τ)`, `Δ` = age in tokens × token time."""

    tau_s: float | None = None
    """Retention time constant τ in second; None: no leakage."""
    token_time_s: float | None = 1e-6
    """Time from one token to the next in second; None: layers of the model × `step_latency_s`, filled in by :func:`aimc.convert`."""
    step_latency_s: float = 1e-7
    """Latency of one attention step of one layer in second; used only where `token_time_s` is None."""
    target_v: float | None = None
    """Voltage V_t in volt to which the cells leak, e.g. 0 where the write transistor leaks to ground; None: the cell's rest voltage,
    `cell.offset_v`. Without leakage (`tau_s` None) it has no effect."""

    def __post_init__(self) -> None:
        if self.tau_s is not None:
            require(
                math.isfinite(self.tau_s) and self.tau_s > 0,
                "leakage.tau_s",
                self.tau_s,
                "a retention time is positive and finite",
                "use null (None) for a cell that does not leak",
            )
        if self.token_time_s is not None:
            require_positive("leakage.token_time_s", self.token_time_s, "second")
        require_positive("leakage.step_latency_s", self.step_latency_s, "second")
        if self.target_v is not None:
            require(
                math.isfinite(self.target_v) and self.target_v >= 0,
                "leakage.target_v",
                self.target_v,
                "a cell leaks to a voltage between ground and supply",
                "use 0 for ground, or null (None) for the cell's rest voltage",
            )

    def known_token_time_s(self) -> float:
        """`token_time_s`, where it is known.

        Raises:
            ConfigError: it is None, and no model has filled it in.
        """
        require(
            self.token_time_s is not None,
            "leakage.token_time_s",
            None,
            "the time of a token is the model's layers × leakage.step_latency_s, and this hardware belongs to no model yet",
            "give it in second, or use aimc.convert, which fills it in",
        )
        return self.token_time_s  # type: ignore[return-value]  # required above

    @property
    def decay_per_token(self) -> float:
        """λ, dimensionless: the stored signal falls by exp(−λ) per token; 0 without leakage."""
        return 0.0 if self.tau_s is None else self.known_token_time_s() / self.tau_s


@dataclass(slots=True, kw_only=True)
class Array:
    """Sizes and full scales of the two arrays of one head."""

    window: int = 1024
    """W, tokens held: a ring buffer of W slots, token s in slot `s mod W`. A multiple of `rows`."""
    rows: int = 64
    """R, tokens per sub-tile of the second array: they share one charge, one clip and one quantisation."""
    saturation_qk: float = 80.0
    """S_sat, charge in signal units at which the charge-to-pulse circuit gives its longest pulse."""
    saturation_av: float = 40.0
    """A_sat, charge in signal units at which a sub-tile's counter is full."""

    def __post_init__(self) -> None:
        require(self.rows >= 1, "array.rows", self.rows, "a sub-tile holds at least one token", "64 is the published size")
        require(
            self.window >= 1 and self.window % self.rows == 0,
            "array.window",
            self.window,
            f"the window must be a positive multiple of the sub-tile, array.rows={self.rows}, because every sub-tile is full size",
            f"use {max(1, round(self.window / self.rows)) * self.rows}",
        )
        require_positive("array.saturation_qk", self.saturation_qk, "signal units")
        require_positive("array.saturation_av", self.saturation_av, "signal units")

    @property
    def n_tiles(self) -> int:
        """J = W / R, sub-tiles of the second array."""
        return self.window // self.rows


@dataclass(slots=True, kw_only=True)
class Protection:
    """Tokens that are kept in a digital memory and take no part in the arrays' reads.

    The first tokens of a text draw much of the attention, and the newest carry most of its information: a few of each rescue noisy arrays.
    """

    n_sink: int = 0
    """First tokens of each sequence (padding not counted) kept digital for ever, also after the window has passed them; 0: none."""
    n_recent: int = 0
    """Newest tokens kept digital, the reading token itself included; 0: none."""

    def __post_init__(self) -> None:
        for name in ("n_sink", "n_recent"):
            value = getattr(self, name)
            require(value >= 0, f"protection.{name}", value, "a number of tokens is not negative", "0 switches it off")

    @property
    def is_on(self) -> bool:
        """Whether any token is protected."""
        return bool(self.n_sink or self.n_recent)


@dataclass(slots=True, kw_only=True)
class Hardware:
    """The whole attention hardware of one chip family; `Hardware()` clips and does nothing else."""

    cell: Cell = field(default_factory=Cell)
    """The gain cell of both arrays."""
    leakage: Leakage = field(default_factory=Leakage)
    """Retention of the stored voltages; off by default."""
    array: Array = field(default_factory=Array)
    """Sizes and full scales."""
    input_dac: Converter = field(default_factory=Converter)
    """Query to pulse width, as a fraction of the longest pulse."""
    storage_dac: Converter = field(default_factory=lambda: Converter(v_min=0.0, v_max=0.9))
    """Key and value to stored voltage, in volt, inside [0, cell.supply_v]."""
    readout: Converter = field(default_factory=lambda: Converter(v_min=-1.0, v_max=1.0, coding="sign_magnitude"))
    """Sub-tile charge to number, in units of `array.saturation_av`."""
    noise: Noise = field(default_factory=Noise)
    """Random non-idealities; all off by default."""
    activation: str = "hard_sigmoid"
    """`hard_sigmoid`: the charge-to-pulse circuit, φ = clip(S/S_sat, 0, 1). `softmax`: scores through `score_adc`, softmax in digital,
    probabilities through `probability_dac` as pulses into the second array."""
    score_adc: Converter = field(default_factory=lambda: Converter(v_min=-1.0, v_max=1.0, coding="sign_magnitude"))
    """Charge of the first array to a number, in units of `array.saturation_qk`; used only by `softmax`."""
    probability_dac: Converter = field(default_factory=Converter)
    """Probability to pulse width, as a fraction of the longest pulse; used only by `softmax`."""
    protection: Protection = field(default_factory=Protection)
    """Tokens kept digital; none by default."""
    backend: str = "auto"
    """`auto` (chosen by device and features), or one implementation by name: `eager` (the reference), `blocked` (PyTorch, any device),
    `triton` (NVIDIA GPUs). All compute the same."""

    def __post_init__(self) -> None:
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("backend", self.backend, BACKENDS)
        require(
            self.storage_dac.v_min >= 0 and self.storage_dac.v_max <= self.cell.supply_v,
            "storage_dac.v_min, storage_dac.v_max",
            (self.storage_dac.v_min, self.storage_dac.v_max),
            f"a cell stores voltages between 0 and cell.supply_v={self.cell.supply_v}",
            "set the range inside the supply",
        )
        target_v = self.leakage.target_v
        require(
            target_v is None or target_v <= self.cell.supply_v,
            "leakage.target_v",
            target_v,
            f"a cell leaks to a voltage between ground and cell.supply_v={self.cell.supply_v}",
            "use 0 for ground, the supply, or null (None) for the cell's rest voltage",
        )
        signed = self.activation == "softmax"
        require(
            self.input_dac.v_min >= (-1 if signed else 0) and self.input_dac.v_max <= 1,
            "input_dac.v_min, input_dac.v_max",
            (self.input_dac.v_min, self.input_dac.v_max),
            "a pulse width is a fraction of the longest pulse"
            + (", negative where it is read with opposite polarity" if signed else "; negative pulses need activation='softmax'"),
            f"set the range inside [{-1 if signed else 0}, 1]",
        )
        require(
            self.probability_dac.v_min == 0 and self.probability_dac.v_max <= 1,
            "probability_dac.v_min, probability_dac.v_max",
            (self.probability_dac.v_min, self.probability_dac.v_max),
            "a probability becomes a pulse between none and the longest",
            "set v_min to 0 and v_max to at most 1",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, with the version; what `config.json` carries under `aimc`."""
        return {"version": HARDWARE_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Hardware:
        """The inverse of :meth:`to_dict`.

        Raises:
            ConfigError: a version that cannot be migrated, a key that is no field, or a value that a field refuses.
        """
        data = dict(data)
        version = data.pop("version", None)
        require(
            type(version) is int and 1 <= version <= HARDWARE_VERSION,
            "version",
            version,
            f"this hardware config is of a version that is not among 1 to {HARDWARE_VERSION}, so its fields may mean something else",
            "install a newer aimc, or convert the model again with this one",
        )
        for step in _MIGRATIONS[version - 1 :]:
            data = step(data)
        return _build(cls, data, "hardware")


def _only_new_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The next version only added fields, whose defaults are what this one did."""
    return data


_MIGRATIONS = (_only_new_fields, _only_new_fields)
"""One step per version, from version 1 on: each takes the fields of its version to those of the next."""


def _build(cls: type[T], data: Mapping[str, Any], path: str) -> T:
    """A dataclass from nested mappings, refusing keys that are no field."""
    defaults = cls()
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in data:
        require(key in names, f"{path}.{key}", data[key], "unknown key", f"the fields of {path} are {', '.join(names)}")
    values = {}
    for name, value in data.items():
        current = getattr(defaults, name)
        nested = is_dataclass(current) and isinstance(value, Mapping)
        values[name] = _build(type(current), value, f"{path}.{name}") if nested else value  # type: ignore[type-var, arg-type]
    return cls(**values)
