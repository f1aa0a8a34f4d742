"""What the hardware is, as typed values in SI units: the only way the rest of the package is told about a device.

Standard library only. Numbers of real devices live in :mod:`aimc.presets`; the defaults here are the off values, so that
`Hardware()` is the machine without any non-ideality except the clip ranges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

HARDWARE_VERSION = 2
"""Raised whenever fields change; written into every checkpoint. Version 2 added the softmax activation, protection and step latency."""

GRADIENTS = ("exact", "linear")
CODINGS = ("unsigned", "sign_magnitude", "rounded")
ACTIVATIONS = ("hard_sigmoid", "softmax")
BACKENDS = ("auto", "eager", "blocked", "triton")

T = TypeVar("T")


class ConfigError(ValueError):
    """A hardware field has a value that no device can have; the message names the field and the remedy."""


def _require(condition: bool, field_name: str, got: object, why: str, remedy: str) -> None:
    if not condition:
        raise ConfigError(f"{field_name}={got!r}: {why}; {remedy}")


def _require_choice(field_name: str, got: str, choices: tuple[str, ...]) -> None:
    _require(got in choices, field_name, got, "unknown choice", f"use one of {', '.join(choices)}")


def _require_positive(field_name: str, got: float, unit: str) -> None:
    _require(math.isfinite(got) and got > 0, field_name, got, f"must be a positive number of {unit}", "give a value above zero")


@dataclass(slots=True, kw_only=True)
class Cell:
    """One gain cell: charge per unit pulse as a polynomial of the stored voltage about its rest, ``p(u) = Σ c_i·u^i``."""

    supply_v: float = 0.9
    """Supply V_DD in volt: the largest voltage that can be stored."""
    offset_v: float = 0.45
    """Rest voltage V_o in volt: where the cell gives (nearly) no charge, and to which it leaks."""
    coefficients: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """c_0, c_1, … in signal units per volt^i, lowest power first; any degree. Two numbers with c_0 = 0 are a linear cell."""
    gradient: str = "exact"
    """`exact`: the derivative of p; `linear`: the surrogate that treats the cell as `surrogate_slope·u` in the backward pass."""
    surrogate_slope: float = 1.0
    """Slope of the surrogate gradient in signal units per volt; used only where `gradient` is `linear`."""

    def __post_init__(self) -> None:
        self.coefficients = [float(c) for c in self.coefficients]
        _require_positive("cell.supply_v", self.supply_v, "volt")
        _require(
            0 <= self.offset_v <= self.supply_v,
            "cell.offset_v",
            self.offset_v,
            f"must lie between 0 and cell.supply_v={self.supply_v}",
            "half the supply is usual",
        )
        _require(
            len(self.coefficients) >= 2 and all(map(math.isfinite, self.coefficients)),
            "cell.coefficients",
            self.coefficients,
            "a cell needs at least c_0 and c_1, all finite",
            "give them lowest power first, or fit a curve with aimc.circuit.fit_transfer",
        )
        _require(
            any(c != 0 for c in self.coefficients[1:]),
            "cell.coefficients",
            self.coefficients,
            "the charge does not depend on the stored voltage",
            "give at least one non-zero coefficient above c_0",
        )
        _require_choice("cell.gradient", self.gradient, GRADIENTS)
        _require_positive("cell.surrogate_slope", self.surrogate_slope, "signal units per volt")


@dataclass(slots=True, kw_only=True)
class Leakage:
    """Stored voltages relax to the cell's rest voltage, `u(Δ) = u(0)·exp(−Δ/τ)`, `Δ` = age in tokens × token time."""

    tau_s: float | None = None
    """Retention time constant τ in second; None: no leakage."""
    token_time_s: float | None = 1e-6
    """Time from one token to the next in second; None: layers of the model × `step_latency_s`, filled in by :func:`aimc.convert`."""
    step_latency_s: float = 1e-7
    """Latency of one attention step of one layer in second; used only where `token_time_s` is None."""

    def __post_init__(self) -> None:
        if self.tau_s is not None:
            _require(
                math.isfinite(self.tau_s) and self.tau_s > 0,
                "leakage.tau_s",
                self.tau_s,
                "a retention time is positive and finite",
                "use null (None) for a cell that does not leak",
            )
        if self.token_time_s is not None:
            _require_positive("leakage.token_time_s", self.token_time_s, "second")
        _require_positive("leakage.step_latency_s", self.step_latency_s, "second")

    def known_token_time_s(self) -> float:
        """`token_time_s`, where it is known.

        Raises:
            ConfigError: it is None, and no model has filled it in.
        """
        _require(
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
        _require(self.rows >= 1, "array.rows", self.rows, "a sub-tile holds at least one token", "64 is the published size")
        _require(
            self.window >= 1 and self.window % self.rows == 0,
            "array.window",
            self.window,
            f"the window must be a positive multiple of the sub-tile, array.rows={self.rows}, because every sub-tile is full size",
            f"use {max(1, round(self.window / self.rows)) * self.rows}",
        )
        _require_positive("array.saturation_qk", self.saturation_qk, "signal units")
        _require_positive("array.saturation_av", self.saturation_av, "signal units")

    @property
    def n_tiles(self) -> int:
        """J = W / R, sub-tiles of the second array."""
        return self.window // self.rows


@dataclass(slots=True, kw_only=True)
class Converter:
    """A DAC or a counter: clip to `[v_min, v_max]`, then round to `n_levels` values, all inside that range."""

    n_levels: int | None = None
    """Number of distinct output values; None: clip only."""
    v_min: float = 0.0
    """Lower clip (volt for storage, pulse fraction for the input, full scales for the readout)."""
    v_max: float = 1.0
    """Upper clip, same unit as `v_min`."""
    coding: str = "unsigned"
    """`unsigned`: n levels from v_min to v_max. `sign_magnitude`: step v_max/(n/2−1) about zero, n−1 distinct values for even n.
    `rounded`: multiples of (v_max−v_min)/(n−1), which can leave the range (what the published code does)."""

    def __post_init__(self) -> None:
        if self.n_levels is not None:
            _require(self.n_levels >= 2, "n_levels", self.n_levels, "a converter has at least 2 levels", "use null (None) for an ideal one")
        _require(
            math.isfinite(self.v_min) and math.isfinite(self.v_max) and self.v_min < self.v_max,
            "v_min, v_max",
            (self.v_min, self.v_max),
            "the clip range is empty or upside down",
            "give v_min < v_max",
        )
        _require_choice("coding", self.coding, CODINGS)
        if self.coding == "sign_magnitude":
            _require(
                self.v_min == -self.v_max,
                "v_min, v_max",
                (self.v_min, self.v_max),
                "sign and magnitude needs a symmetric range",
                "give v_min = −v_max",
            )
            _require(
                self.n_levels is None or (self.n_levels >= 4 and self.n_levels % 2 == 0),
                "n_levels",
                self.n_levels,
                "sign and magnitude needs an even number of levels, at least 4 (one bit is the sign)",
                "use 4, 8, 16, 32, …",
            )


@dataclass(slots=True, kw_only=True)
class Noise:
    """Random non-idealities, each a standard deviation, each 0 (off) by default, each independent of the others."""

    write_v: float = 0.0
    """Write noise in volt, drawn once per written value; its physical floor is √(kT/C)."""
    read_qk: float = 0.0
    """Read noise of the first array, as a fraction of `array.saturation_qk`, drawn at every read."""
    read_av: float = 0.0
    """Read noise of the second array, as a fraction of `array.saturation_av`, drawn at every read of every sub-tile."""
    mismatch_gain: float = 0.0
    """Relative spread of a cell's charge; frozen per (layer, K/V head, array, slot, feature) of one chip."""
    mismatch_offset_v: float = 0.0
    """Spread of a cell's rest voltage in volt; frozen like `mismatch_gain`."""
    column_gain: float = 0.0
    """Relative gain error of a column's readout circuit; frozen per (layer, K/V head, array, column). A column of the first
    array is a slot (one charge-to-pulse circuit), of the second a (sub-tile, feature) pair (one counter)."""
    column_offset: float = 0.0
    """Offset of a column's readout circuit, as a fraction of the array's saturation; frozen like `column_gain`."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            _require(
                math.isfinite(value) and value >= 0,
                f"noise.{f.name}",
                value,
                "a standard deviation is finite and not negative",
                "0 switches it off",
            )

    def only(self, name: str) -> Noise:
        """This noise with every field but `name` switched off."""
        return Noise(**{name: getattr(self, name)})

    def active(self) -> list[str]:
        """Names of the fields that are not off."""
        return [f.name for f in fields(self) if getattr(self, f.name) > 0]

    def is_fresh(self) -> bool:
        """Whether any of it is drawn anew in every call, so that a seed is needed."""
        return bool(self.write_v or self.read_qk or self.read_av)

    def is_frozen_in_chip(self) -> bool:
        """Whether any of it belongs to one chip, so that a chip must be chosen."""
        return any(n.startswith(("mismatch", "column")) for n in self.active())


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
            _require(value >= 0, f"protection.{name}", value, "a number of tokens is not negative", "0 switches it off")

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
        _require_choice("activation", self.activation, ACTIVATIONS)
        _require_choice("backend", self.backend, BACKENDS)
        _require(
            self.storage_dac.v_min >= 0 and self.storage_dac.v_max <= self.cell.supply_v,
            "storage_dac.v_min, storage_dac.v_max",
            (self.storage_dac.v_min, self.storage_dac.v_max),
            f"a cell stores voltages between 0 and cell.supply_v={self.cell.supply_v}",
            "set the range inside the supply",
        )
        signed = self.activation == "softmax"
        _require(
            self.input_dac.v_min >= (-1 if signed else 0) and self.input_dac.v_max <= 1,
            "input_dac.v_min, input_dac.v_max",
            (self.input_dac.v_min, self.input_dac.v_max),
            "a pulse width is a fraction of the longest pulse"
            + (", negative where it is read with opposite polarity" if signed else "; negative pulses need activation='softmax'"),
            f"set the range inside [{-1 if signed else 0}, 1]",
        )
        _require(
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
        _require(
            type(version) is int and 1 <= version <= HARDWARE_VERSION,
            "version",
            version,
            f"this hardware config is of a version that is not among 1 to {HARDWARE_VERSION}, so its fields may mean something else",
            "install a newer aimc, or convert the model again with this one",
        )
        for step in _MIGRATIONS[version - 1 :]:
            data = step(data)
        return _build(cls, data, "hardware")


def _from_1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 only added fields, whose defaults are what version 1 did."""
    return data


_MIGRATIONS = (_from_1_to_2,)
"""One step per version, from version 1 on: each takes the fields of its version to those of the next."""


def _build(cls: type[T], data: Mapping[str, Any], path: str) -> T:
    """A dataclass from nested mappings, refusing keys that are no field."""
    defaults = cls()
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in data:
        _require(key in names, f"{path}.{key}", data[key], "unknown key", f"the fields of {path} are {', '.join(names)}")
    values = {}
    for name, value in data.items():
        current = getattr(defaults, name)
        nested = is_dataclass(current) and isinstance(value, Mapping)
        values[name] = _build(type(current), value, f"{path}.{name}") if nested else value  # type: ignore[type-var, arg-type]
    return cls(**values)
