"""The rows of the table that shows a pretrained model on arrays without training: machines, and what is asked of
them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from aimc.evaluate.measurement import Measurement
from aimc.hardware import Features, Hardware, Noise, Protection, Pruning
from aimc.hardware.presets import for_pretrained, linearised, typical

PROTECTED = Protection(n_sink=4, n_recent=64)


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a machine made of the cell at hand, and how it is measured."""

    title: str
    machine: Callable[[Hardware], Hardware]
    """Of the cell at hand."""
    group: str = "effects"
    """`effects`: machines by their levels; `remedies`: the 6-bit machine without one of them; `noise`: over chips."""
    method: str = "output_error"
    """Of :func:`aimc.calibrate_ranges`."""
    noise: Noise | None = None
    at_most: float | None = None
    """Perplexity over the digital model's that must not be exceeded; None: nothing is asked."""
    aim: float | None = None


def _with(hardware: Hardware, protection: Protection = Protection(), **levels: int | bool | None) -> Hardware:  # noqa: B008 (never changed)
    return replace(for_pretrained(hardware, **levels), protection=protection)  # type: ignore[arg-type]


def _pruned(kept_share: float, hardware: Hardware) -> Hardware:
    return for_pretrained(hardware, storage_levels=8, input_levels=8, pruned=Pruning(kept_share=kept_share))


def _no_levels(hardware: Hardware) -> Hardware:
    return for_pretrained(
        hardware,
        input_levels=None,
        storage_levels=None,
        score_levels=None,
        probability_levels=None,
        readout_levels=None,
    )


def _without(change: Callable[[Hardware], Hardware], hardware: Hardware) -> Hardware:
    return change(for_pretrained(hardware))


def _uniform(machine: Hardware) -> Hardware:
    return replace(machine, storage_dac=replace(machine.storage_dac, spacing="uniform"))


def _one_reference(machine: Hardware) -> Hardware:
    return replace(machine, array=replace(machine.array, full_scales="global"))


def _uncompensated(machine: Hardware) -> Hardware:
    return replace(machine, leakage=replace(machine.leakage, compensate=False))


def _unrotated(machine: Hardware) -> Hardware:
    return replace(machine, features=replace(machine.features, rotation_qk="none", rotation_av="none"))


def _unnormalised(machine: Hardware) -> Hardware:
    features = replace(machine.features, normalise_queries=False, normalise_keys=False, normalise_values=False)
    return replace(machine, features=features)


def _centred(machine: Hardware) -> Hardware:
    return replace(machine, features=replace(machine.features, centre_keys=True, centre_values=True))


def _bare(machine: Hardware) -> Hardware:
    """None of the remedies: the machine as it was."""
    machine = _uncompensated(_one_reference(_uniform(machine)))
    return replace(machine, features=Features())


def fitting(hardware: Hardware, measurement: Measurement, rotation: str) -> Hardware:
    """As many slots as the windows of the measurement need, so that no token is overwritten; and a rotation that the
    model's heads have, where there is one."""
    if hardware.features.rotation_qk != "none":
        hardware = replace(hardware, features=replace(hardware.features, rotation_qk=rotation, rotation_av=rotation))
    array, context = hardware.array, measurement.context or hardware.array.window
    n_slots = -(-context // array.rows) * array.rows
    return replace(hardware, array=replace(array, window=max(n_slots, array.window)))


ROWS = {
    "no_levels": Row("no levels", _no_levels, at_most=1.01, aim=1.005),
    "6_bit": Row("6-bit storage and inputs, 8-bit converters", _with, at_most=1.04, aim=1.02),
    "4_bit": Row(
        "4-bit storage, 5-bit inputs", partial(_with, storage_levels=16, input_levels=32), at_most=1.15, aim=1.08
    ),
    "4_bit_protected": Row(
        "… first 4 and newest 64 tokens digital",
        partial(_with, protection=PROTECTED, storage_levels=16, input_levels=32),
        at_most=1.04,
        aim=1.02,
    ),
    "3_bit": Row("3-bit storage, 4-bit inputs", partial(_with, storage_levels=8, input_levels=16)),
    "3_bit_protected": Row(
        "… first 4 and newest 64 tokens digital",
        partial(_with, protection=PROTECTED, storage_levels=8, input_levels=16),
        at_most=1.12,
        aim=1.05,
    ),
    "3_bit_pruned": Row(
        "3-bit storage and inputs select a quarter of the tokens, digital attends to those",
        partial(_pruned, 0.25),
        at_most=1.05,
        aim=1.02,
    ),
    "3_bit_pruned_half": Row("3-bit storage and inputs select half of the tokens", partial(_pruned, 0.5)),
    "3_bit_pruned_eighth": Row("3-bit storage and inputs select an eighth of the tokens", partial(_pruned, 0.125)),
    "linear_cell": Row("6-bit, linear cell", lambda hardware: for_pretrained(linearised(hardware)), group="remedies"),
    "uniform_levels": Row("6-bit without equal charge", partial(_without, _uniform), group="remedies"),
    "one_reference": Row("6-bit with one full scale for the chip", partial(_without, _one_reference), group="remedies"),
    "unrotated": Row("6-bit without rotation", partial(_without, _unrotated), group="remedies"),
    "unnormalised": Row("6-bit without normalising", partial(_without, _unnormalised), group="remedies"),
    "uncompensated": Row("6-bit without age compensation", partial(_without, _uncompensated), group="remedies"),
    "centred": Row("6-bit, keys and values centred too", partial(_without, _centred), group="remedies"),
    "bare": Row("6-bit without any of them", partial(_without, _bare), group="remedies"),
    "bare_percentile": Row(
        "… and ranges by percentile", partial(_without, _bare), group="remedies", method="percentile"
    ),
    "6_bit_noise": Row(
        "6-bit under typical noise and mismatch", _with, group="noise", noise=typical(), at_most=1.10, aim=1.05
    ),
    "6_bit_noise_protected": Row(
        "6-bit under typical noise and mismatch, first 4 and newest 64 tokens digital",
        partial(_with, protection=PROTECTED),
        group="noise",
        noise=typical(),
        at_most=1.10,
        aim=1.05,
    ),
}
