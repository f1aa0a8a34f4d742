"""The non-idealities by name: where each stands in a machine, how it is switched off, and which way is worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aimc.circuit.cost.report import si
from aimc.evaluate.converters import OF_NORMALISER, converter_at, with_converter, without_levels
from aimc.hardware import ConfigError, Hardware, Noise

CONVERTERS = {
    "input_levels": ("input_dac", "input levels"),
    "storage_levels": ("storage_dac", "storage levels"),
    "readout_levels": ("readout", "readout levels"),
    "normaliser_levels": (OF_NORMALISER, "normaliser levels"),
    "score_levels": ("score_adc", "score levels"),
    "probability_levels": ("probability_dac", "probability levels"),
}
"""Effect to converter and words; that of the normaliser only where there is such a column, the last two only where
a softmax is between the arrays."""
NOISES = {
    "write_v": ("write noise", "V", 2e-3, 0.5),
    "read_qk": ("read noise, first array", "of full scale", 0.02, 10.0),
    "read_av": ("read noise, second array", "of full scale", 0.02, 10.0),
    "mismatch_gain": ("gain mismatch", "", 0.05, 5.0),
    "mismatch_offset_v": ("offset mismatch", "V", 0.02, 1.0),
    "column_gain": ("column gain error", "", 0.02, 5.0),
    "column_offset": ("column offset", "of full scale", 0.01, 5.0),
    "tau_spread": ("spread of retention", "σ of ln τ", 0.2, 3.0),
}
"""Effect to words, unit, where a search for a tolerance starts if the study gives no size, and where it ends."""
FEWEST_LEVELS, SHORTEST_TAU_TOKENS = 2, 1.0


@dataclass(frozen=True, slots=True)
class Effect:
    """One non-ideality."""

    name: str
    label: str
    unit: str
    kind: str
    """`noise`: a standard deviation, 0 is off; `levels`: of a converter, None is off; `retention`: τ, None is off."""
    start: float
    """Size from which a search starts where the machine has none."""
    worst: float
    """Size beyond which no search goes."""

    @property
    def grows(self) -> bool:
        """Whether a larger number is worse."""
        return self.kind == "noise"

    @property
    def is_whole(self) -> bool:
        """Whether sizes are whole numbers."""
        return self.kind == "levels"

    def size(self, machine: Hardware) -> float | None:
        """How large it is on a machine; None: off."""
        if self.kind == "noise":
            return getattr(machine.noise, self.name) or None
        if self.kind == "levels":
            return converter_at(machine, CONVERTERS[self.name][0]).n_levels
        return machine.leakage.tau_s

    def at(self, machine: Hardware, size: float | None) -> Hardware:
        """The machine with this effect of another size; None: off. Of levels the nearest number that the converter can
        have."""
        if self.kind == "noise":
            changed = {name: getattr(machine.noise, name) for name in Noise.__slots__} | {self.name: size or 0.0}
            return replace(machine, noise=Noise(**changed))
        if self.kind == "retention":
            return replace(machine, leakage=replace(machine.leakage, tau_s=size))
        name = CONVERTERS[self.name][0]
        converter = without_levels(converter_at(machine, name))
        if size is not None:
            converter = replace(converter, n_levels=self.whole(machine, size))
        return with_converter(machine, name, converter)

    def taken_from(self, machine: Hardware, bare: Hardware) -> Hardware:
        """Another machine with this effect as it is on the first: a converter with where its levels lie."""
        if self.kind != "levels":
            return self.at(bare, self.size(machine))
        name = CONVERTERS[self.name][0]
        return with_converter(bare, name, converter_at(machine, name))

    def whole(self, machine: Hardware, size: float) -> int:
        """The nearest number of levels that the converter can have."""
        signed = converter_at(machine, CONVERTERS[self.name][0]).coding == "sign_magnitude"
        return max(4, 2 * round(size / 2)) if signed else max(FEWEST_LEVELS, round(size))

    def off(self, machine: Hardware) -> Hardware:
        """The machine without it."""
        return self.at(machine, None)


def effects_of(machine: Hardware) -> dict[str, Effect]:
    """Every effect that a machine can have, by name."""
    has_softmax = machine.has_softmax
    pruned = machine.activation == "pruned_softmax"
    found = [Effect(name, *words[:2], "noise", *words[2:]) for name, words in NOISES.items()]
    if pruned:  # its second array is not read
        found = [effect for effect in found if effect.name != "read_av"]
    token_s = machine.leakage.token_time_s or machine.leakage.step_latency_s
    found.append(Effect("retention", "retention τ", "s", "retention", token_s * 10_000, token_s * SHORTEST_TAU_TOKENS))
    for name, (converter, label) in CONVERTERS.items():
        between = converter in ("score_adc", "probability_dac")
        if converter == OF_NORMALISER and not machine.normaliser.is_on:
            continue
        if (between and not has_softmax) or (pruned and converter in ("readout", "probability_dac")):
            continue
        found.append(Effect(name, label, "levels", "levels", 256, FEWEST_LEVELS))
    return {effect.name: effect for effect in found}


def chosen(machine: Hardware, names: Sequence[str] = ()) -> list[Effect]:
    """Effects by name; without names those that the machine has.

    Raises:
        ConfigError: an unknown name.
    """
    known = effects_of(machine)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"effects={name}: no such effect of this machine, so nothing would be measured; there are"
                f" {', '.join(known)}"
            )
    return [known[name] for name in names] if names else [e for e in known.values() if e.size(machine) is not None]


def ideal(machine: Hardware) -> Hardware:
    """The machine with every effect off: cells, windows and full scales are what they were."""
    for effect in effects_of(machine).values():
        machine = effect.off(machine)
    return machine


def without(machine: Hardware, effects: Sequence[Effect]) -> Hardware:
    """The machine with some effects off."""
    for effect in effects:
        machine = effect.off(machine)
    return machine


def written(effect: Effect, size: float | None) -> str:
    """A size in words: `0.02 of full scale`, `2 mV`, `8 levels`."""
    if size is None:
        return "off"
    if effect.unit in ("V", "s"):
        return si(size, effect.unit)
    if effect.unit == "levels":
        return f"{size:.0f} levels"
    return f"{100 * size:.3g} % {effect.unit}".rstrip() if effect.name != "tau_spread" else f"{size:.3g}"
