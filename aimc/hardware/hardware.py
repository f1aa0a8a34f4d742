"""The whole attention hardware of one chip family, and its form in a `config.json`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from aimc.hardware.array import Array
from aimc.hardware.cell import Cell
from aimc.hardware.checks import check_fields, require, require_choice, require_from_zero
from aimc.hardware.converter import Converter
from aimc.hardware.features import Features
from aimc.hardware.leakage import Leakage
from aimc.hardware.noise import Noise
from aimc.hardware.normaliser import Normaliser
from aimc.hardware.protection import Protection
from aimc.hardware.pruning import Pruning

HARDWARE_VERSION = 7
"""Raised whenever fields change; written into every checkpoint. Version 2 added the softmax activation, protection and
step latency; version 3 the leak target, the spread of retention times and the converters' nonlinearity; version 4 level
positions, full scales per head, freedoms of the features and pruning; version 5 the gradient of noise, and with it came
another generator: a seed names another chip and another noise of the same statistics; version 6 what a trained head may
have beside the published circuit: a normaliser column, a threshold, a gain by position; version 7 what is divided by at
least."""

ACTIVATIONS = ("hard_sigmoid", "softmax", "pruned_softmax")
BACKENDS = ("auto", "eager", "blocked", "triton")
NOISE_GRADIENTS = ("exact", "clean")

T = TypeVar("T")


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
    """`hard_sigmoid`: the charge-to-pulse circuit, φ = clip(S/S_sat, 0, 1). `softmax`: scores through `score_adc`,
    softmax in digital, probabilities through `probability_dac` as pulses into the second array. `pruned_softmax`: the
    scores only select tokens, see `pruning`, and attention over those is digital."""
    score_adc: Converter = field(default_factory=lambda: Converter(v_min=-1.0, v_max=1.0, coding="sign_magnitude"))
    """Charge of the first array to a number, in units of `array.saturation_qk`; used only by `softmax` and
    `pruned_softmax`."""
    probability_dac: Converter = field(default_factory=Converter)
    """Probability to pulse width, as a fraction of the longest pulse; used only by `softmax`."""
    normaliser: Normaliser = field(default_factory=Normaliser)
    """A column of the second array that reads Σφ, by which digital logic divides; none by default, and none with a
    softmax."""
    threshold: bool = False
    """True: each head's charge-to-pulse circuits start from a charge of their own, `φ = clip(S/S_sat − θ, 0, 1)`
    (a pre-charge of the bit lines; sigmoid attention needs one, arXiv 2409.04431). θ is trained."""
    position_gain: bool = False
    """True: digital logic multiplies a head's output by `(n/W)^−γ`, n the tokens that its query sees, at most the
    window. γ is trained; 1 makes a mean of a sum."""
    protection: Protection = field(default_factory=Protection)
    """Tokens kept digital; none by default."""
    features: Features = field(default_factory=Features)
    """Freedoms of digital attention that are taken before the arrays; none by default. Rotation and balance leave any
    scores as they are; centred keys change all scores of a query by one number, which a softmax does not see and a
    trained threshold makes up for; centred values are exact where outputs are normalised."""
    pruning: Pruning = field(default_factory=Pruning)
    """How `pruned_softmax` selects; used only by it."""
    noise_gradient: str = "exact"
    """What is differentiated under noise: `exact`, the noisy chip that has computed; `clean`, the same chip without
    noise and mismatch, whatever has computed (extended straight-through, arXiv 2508.11940)."""
    backend: str = "auto"
    """`auto` (chosen by device and features), or one implementation by name: `eager` (the reference), `blocked`
    (PyTorch, on a CPU or CUDA), `triton` (NVIDIA GPUs). All compute the same."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("backend", self.backend, BACKENDS)
        require_choice("noise_gradient", self.noise_gradient, NOISE_GRADIENTS)
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
        require(
            self.input_dac.v_min >= -1 and self.input_dac.v_max <= 1,
            "input_dac.v_min, input_dac.v_max",
            (self.input_dac.v_min, self.input_dac.v_max),
            "a pulse width is a fraction of the longest pulse, negative where it is read with opposite polarity",
            "set the range inside [-1, 1]",
        )
        require(
            self.probability_dac.v_min == 0 and self.probability_dac.v_max <= 1,
            "probability_dac.v_min, probability_dac.v_max",
            (self.probability_dac.v_min, self.probability_dac.v_max),
            "a probability becomes a pulse between none and the longest",
            "set v_min to 0 and v_max to at most 1",
        )
        self._check_levels()
        require(
            self.has_softmax or not self.features.normalise_queries,
            "features.normalise_queries",
            True,
            "the hard sigmoid sees each score by itself, and nothing behind it could put back what a query was divided"
            " by",
            "use activation='softmax' or 'pruned_softmax', or False",
        )
        for name, given in (
            ("normaliser.is_on", self.normaliser.is_on),
            ("threshold", self.threshold),
            ("position_gain", self.position_gain),
        ):
            require(
                not (given and self.has_softmax),
                name,
                given,
                f"activation={self.activation!r} divides by the sum of its shares already, and has no charge-to-pulse"
                " circuit behind the first array",
                "use activation='hard_sigmoid', or False",
            )
        require(
            self.activation == "softmax" or not self.leakage.compensate,
            "leakage.compensate",
            True,
            f"with activation={self.activation!r} no digital logic between the arrays could make up for age",
            "use activation='softmax', or False",
        )
        require(
            not self.features.normalises or (self.activation == "softmax" and self.leaks_to_rest),
            "features.normalise_keys, features.normalise_values",
            (self.features.normalise_keys, self.features.normalise_values),
            "digital logic between the arrays puts back what a token was divided by, and cells must forget to rest",
            "use activation='softmax' and leakage.target_v=null (None), or False",
        )
        self._check_spacing()

    def _check_levels(self) -> None:
        """What no range tells of levels: where a list begins, and that multiples of a step may leave it."""
        require_from_zero(
            "probability_dac.positions",
            self.probability_dac.positions,
            "a key that a query does not see has no probability, and gets no pulse",
        )
        for name, low, high in (("storage_dac", 0.0, self.cell.supply_v), ("input_dac", -1.0, 1.0)):
            dac: Converter = getattr(self, name)
            if dac.coding != "rounded" or dac.n_levels is None:
                continue
            step = (dac.v_max - dac.v_min) / (dac.n_levels - 1)
            ends = [round(v / step) * step for v in (dac.v_min, dac.v_max)]
            require(
                low - 1e-6 <= ends[0] and ends[1] <= high + 1e-6,
                f"{name}.coding",
                "rounded",
                f"its levels are multiples of {step:g}, from {ends[0]:g} to {ends[1]:g}, and a device has none outside"
                f" of {low:g} to {high:g}",
                "use coding='unsigned' or 'sign_magnitude', or another range or number of levels",
            )

    @property
    def leaks_to_rest(self) -> bool:
        """Whether cells, if they leak, forget to the voltage at which they give no charge."""
        return self.leakage.tau_s is None or self.leakage.target_v in (None, self.cell.offset_v)

    def _check_spacing(self) -> None:
        others = {name: getattr(self, name) for name in ("input_dac", "readout", "score_adc", "probability_dac")}
        for name, converter in (others | {"normaliser.counter": self.normaliser.counter}).items():
            require(
                converter.spacing != "equal_charge",
                f"{name}.spacing",
                "equal_charge",
                "only what is stored in a cell gives a charge",
                "use 'uniform' or 'listed'",
            )
        dac, cell = self.storage_dac, self.cell
        if dac.spacing != "equal_charge":
            return
        steps = [dac.v_min + (dac.v_max - dac.v_min) * i / 64 - cell.offset_v for i in range(65)]
        slopes = [sum(i * c * u ** (i - 1) for i, c in enumerate(cell.coefficients) if i) for u in steps]
        require(
            all(slope > 0 for slope in slopes),
            "storage_dac.spacing",
            dac.spacing,
            f"the charge of this cell does not rise all the way from storage_dac.v_min={dac.v_min} to"
            f" storage_dac.v_max={dac.v_max}, so a charge does not say which voltage to write",
            "narrow the range to where it rises, or use 'uniform'",
        )

    @property
    def leaks_apart(self) -> bool:
        """Whether cells leak, and each at a rate of its own."""
        return bool(self.noise.tau_spread and self.leakage.decay_per_token)

    @property
    def fits_counters(self) -> bool:
        """Whether the counters behind pulses have full scales of each head or layer, which are fitted and not trained
        for (:func:`aimc.fit_full_scales`)."""
        return self.array.full_scales != "global" and not self.has_softmax

    @property
    def has_softmax(self) -> bool:
        """Whether a softmax, of all or of selected tokens, follows the first array."""
        return self.activation != "hard_sigmoid"

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
            f"this hardware config is of a version that is not among 1 to {HARDWARE_VERSION}, so its fields may mean"
            " something else",
            "install a newer aimc, or convert the model again with this one",
        )
        for step in _MIGRATIONS[version - 1 :]:
            data = step(data)
        return _build(cls, data, "hardware")


def _only_new_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The next version only added fields, whose defaults are what this one did."""
    return data


def _other_draws(data: dict[str, Any]) -> dict[str, Any]:
    """Version 5 draws with another generator."""
    if active := [name for name, sigma in data.get("noise", {}).items() if sigma]:
        warnings.warn(
            f"this hardware with noise.{', noise.'.join(active)} was written before hardware version 5: its seeds name"
            " other chips and other noise now, of the same statistics; measure again what is compared chip by chip",
            stacklevel=4,
        )
    return data


_MIGRATIONS = (_only_new_fields, _only_new_fields, _only_new_fields, _other_draws, _only_new_fields, _only_new_fields)
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
