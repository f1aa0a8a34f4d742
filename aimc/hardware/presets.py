"""Named devices and their numbers, each with its source. No other file holds a device constant.

Sources:
    [L25] N. Leroux et al., "Analog in-memory computing attention mechanism for fast and energy-efficient large language
    models", Nature Computational Science (2025), and its published code.
"""

from __future__ import annotations

from dataclasses import replace

from aimc.hardware import Array, Cell, Converter, Features, Hardware, Leakage, Noise, Normaliser, Protection, Pruning

LINEAR_SLOPE = 19.3
"""Signal units per volt of the linear cell, and of the surrogate gradient of the nonlinear one [L25, code]."""
CMOS_SURFACE = {
    **{(0, 0): 0.17393044, (0, 1): 0.15653739, (0, 2): 0.14088365, (0, 3): 0.12679529},
    **{(1, 0): 5.51975209, (1, 1): 4.96777688, (1, 2): 4.4709992},
    **{(2, 0): -1.44776001, (2, 1): -1.30298401, (3, 0): 46.05483778},
}
"""C_ij of the silicon CMOS cell, in signal units: charge over stored voltage about rest (power i) and read voltage
(power j) [L25, code]. The rows fall as 0.9^j, the mark of a fit at one read voltage: it is good at 0.9 V alone."""
CMOS_COEFFICIENTS = (0.52136361391, 13.612260634, -2.620445619, 46.05483778)
"""c_0…c_3 of the silicon CMOS cell [L25]: its ten-coefficient surface C_ij at a read voltage of 0.9 V, c_i = Σ_j
0.9^j·C_ij."""
STEP_LATENCY_S = 65e-9
"""Latency of one attention step of one layer [L25]."""
LONGEST_PULSE_S = 15e-9
"""T_max, width of the longest input pulse [L25]."""
CMOS_TAU_S = 5e-3
"""Retention of the silicon CMOS cell [L25]."""
IGZO_TAU_S = 5.0
"""Retention of an oxide-semiconductor cell: multi-second, three orders of magnitude above silicon; [L25] names the
range, not a fit."""
PUBLISHED_LAYERS = 12
"""Layers of the published model, GPT-2 small: one token takes 12 × 65 ns."""


def _linear_cell() -> Cell:
    return Cell(coefficients=[0.0, LINEAR_SLOPE], surrogate_slope=LINEAR_SLOPE)


def _cmos_cell() -> Cell:
    return Cell(coefficients=list(CMOS_COEFFICIENTS), surrogate_slope=LINEAR_SLOPE)


def ideal() -> Hardware:
    """Linear cells that do not leak and converters that only clip: what the arrays compute at best."""
    return Hardware(cell=_linear_cell())


def gain_cell_linear(n_layers: int = PUBLISHED_LAYERS) -> Hardware:
    """The published hardware with a linear cell, 19.3·u: the first stop on the way from a digital model [L25, linear
    model].

    16 input levels, 8 storage levels over the supply, 32 signed readout levels, silicon retention.

    Args:
        n_layers: layers that a token passes one after another; sets the time that a stored voltage leaks per token.
    """
    return Hardware(
        cell=_linear_cell(),
        leakage=Leakage(tau_s=CMOS_TAU_S, token_time_s=n_layers * STEP_LATENCY_S, step_latency_s=STEP_LATENCY_S),
        array=Array(),
        input_dac=Converter(n_levels=16),
        storage_dac=Converter(n_levels=8, v_max=0.9),
        readout=Converter(n_levels=32, v_min=-1.0, v_max=1.0, coding="sign_magnitude"),
    )


def gain_cell_cmos(n_layers: int = PUBLISHED_LAYERS) -> Hardware:
    """The published nonlinear silicon CMOS cell, with levels, clips, window and leakage of the published system [L25].

    Args:
        n_layers: as for :func:`gain_cell_linear`.
    """
    return with_cell(gain_cell_linear(n_layers), _cmos_cell())


def gain_cell_normalised(n_layers: int = PUBLISHED_LAYERS) -> Hardware:
    """:func:`gain_cell_cmos` with what a trained head makes most of, none of it published hardware: a normaliser column
    with an 8-bit counter, which divides by a quarter of a pulse at least; queries of either sign (32 levels, of which
    31 differ, in pulses no longer than the published 16); and counters with a reference of each head
    (:func:`aimc.fit_full_scales` sets them; until then they are those of the chip). Cell, storage and readout levels,
    sub-tiles and leakage are the published ones.

    Args:
        n_layers: as for :func:`gain_cell_linear`.
    """
    base = gain_cell_cmos(n_layers)
    return replace(
        base,
        input_dac=Converter(n_levels=32, v_min=-1.0, v_max=1.0, coding="sign_magnitude"),
        normaliser=Normaliser(is_on=True, full_scale=16.0, counter=Converter(n_levels=256), least=0.25),
        array=replace(base.array, full_scales="head"),
    )


def igzo(n_layers: int = PUBLISHED_LAYERS) -> Hardware:
    """The same cell in an oxide semiconductor: retention orders of magnitude longer [L25, outlook].

    Args:
        n_layers: as for :func:`gain_cell_linear`.
    """
    hardware = gain_cell_cmos(n_layers)
    hardware.leakage.tau_s = IGZO_TAU_S
    return hardware


def published(n_layers: int = PUBLISHED_LAYERS) -> Hardware:
    """:func:`gain_cell_cmos` with the rounding and gradient of the published code: its 32-level readout makes 33
    levels, to ±1.032.

    Args:
        n_layers: as for :func:`gain_cell_linear`.
    """
    hardware = gain_cell_cmos(n_layers)
    hardware.readout.coding = "rounded"
    hardware.cell.gradient = "linear"
    return hardware


def with_softmax(
    hardware: Hardware,
    *,
    input_levels: int | None = 64,
    storage_levels: int | None = 64,
    score_levels: int | None = 256,
    probability_levels: int | None = 256,
    readout_levels: int | None = 256,
) -> Hardware:
    """`hardware` with converters and a digital softmax between its arrays, for pretrained models that are not trained
    for it.

    Queries are signed: a negative pulse is read with opposite polarity. Cells, window, sub-tiles, leakage and noise
    stay; what only a head with a hard sigmoid has (normaliser column, threshold, gain by position) goes. Ranges are set
    by :func:`aimc.calibrate_ranges`. The levels are assumptions (6-bit inputs and storage, 8-bit converters behind an
    array), not of a published chip: the 3-bit storage of [L25] is made for models that are trained on it.

    Args:
        hardware: e.g. :func:`gain_cell_cmos`.
        input_levels: of the query's pulses; None: ideal.
        storage_levels: of keys and values.
        score_levels: of the ADC behind the first array.
        probability_levels: of the pulses into the second array.
        readout_levels: of the counters.
    """
    new = Hardware.from_dict(hardware.to_dict())
    return replace(
        new,
        activation="softmax",
        input_dac=Converter(n_levels=input_levels, v_min=-1.0, v_max=1.0, coding="sign_magnitude"),
        storage_dac=_with_levels(new.storage_dac, storage_levels),
        normaliser=replace(new.normaliser, is_on=False),
        threshold=False,
        position_gain=False,
        score_adc=Converter(n_levels=score_levels, v_min=-1.0, v_max=1.0, coding="sign_magnitude"),
        probability_dac=Converter(n_levels=probability_levels),
        readout=Converter(n_levels=readout_levels, v_min=-1.0, v_max=1.0, coding="sign_magnitude"),
    )


def _with_levels(dac: Converter, n_levels: int | None) -> Converter:
    """So many; where they were listed one by one, evenly spaced from now on."""
    if dac.spacing != "listed":
        return replace(dac, n_levels=n_levels)
    return replace(dac, n_levels=n_levels, spacing="uniform", positions=None)


def for_pretrained(
    hardware: Hardware,
    *,
    input_levels: int | None = 64,
    storage_levels: int | None = 64,
    score_levels: int | None = 256,
    probability_levels: int | None = 256,
    readout_levels: int | None = 256,
    rotation: str = "hadamard",
    protection: Protection | None = None,
    pruned: bool | Pruning = False,
) -> Hardware:
    """`hardware` with all that lets a pretrained model hold on it without training, for
    :func:`aimc.calibrate_ranges`: :func:`with_softmax`, and

    - storage levels at equal charge (`storage_dac.spacing`), so that a curved cell acts as a straight line;
    - full scales of scores and counters for each head (`array.full_scales`), because heads
      differ in how large their scores and sums are;
    - queries and keys, and values, rotated by a Hadamard matrix (`features`), which spreads the few features that are
      large over all of them, so that a head's levels fit all its features;
    - each query, key and value divided by its own norm, so that every token fills its converter (queries alone where
      cells leak elsewhere than to rest, or tokens are pruned);
    - the time of a token from the layers of the model (`leakage.token_time_s` None), and in the softmax a compensation
      for what a token of its age has lost (`leakage.compensate`).

    Keys and values are not centred: those of the first token, to which much of the attention goes, are near zero in
    many models. Centred they lie far from the cells' rest, and leak towards the mean as they age, which was measured to
    be worse.

    Args:
        hardware: e.g. :func:`gain_cell_cmos`.
        input_levels: of the query's pulses; None: ideal.
        storage_levels: of keys and values.
        score_levels: of the ADC behind the first array.
        probability_levels: of the pulses into the second array.
        readout_levels: of the counters.
        rotation: of the features; `orthogonal` for head sizes that are no power of two.
        protection: first and newest tokens that stay digital; None: as `hardware` has it. It is what 4 and fewer bits
            of storage need most.
        pruned: True, or how to select: the arrays only choose tokens, and attention over those is digital
            (`pruned_softmax`), for storage of few levels. No age is made up for then and no key divided, because a
            selection is no weighting.
    """
    new = with_softmax(
        hardware,
        input_levels=input_levels,
        storage_levels=storage_levels,
        score_levels=score_levels,
        probability_levels=probability_levels,
        readout_levels=readout_levels,
    )
    divides = not pruned and new.leaks_to_rest
    return replace(
        new,
        activation="pruned_softmax" if pruned else "softmax",
        storage_dac=replace(new.storage_dac, spacing="equal_charge"),
        array=replace(new.array, full_scales="head"),
        leakage=replace(new.leakage, token_time_s=None, compensate=not pruned),
        features=Features(
            rotation_qk=rotation,
            rotation_av=rotation,
            normalise_queries=True,
            normalise_keys=divides,
            normalise_values=divides,
        ),
        protection=replace(new.protection if protection is None else protection),
        pruning=replace(pruned) if isinstance(pruned, Pruning) else new.pruning,
    )


def typical() -> Noise:
    """Random non-idealities of a plausible chip, for `nonideality=`; [L25] publishes none, so these are stated
    assumptions.

    Write noise 2 mV: √(kT/C) of 1 fF at 300 K (larger cells have less). Offset mismatch 20 mV: Pelgrom's law with A_VT
        = 2 mV·µm
    and a read transistor of 0.01 µm². Gain mismatch 5 %; read noise 2 % of full scale; readout circuits off by 2 % in
    gain and 1 % of full scale in offset.
    """
    return Noise(
        write_v=2e-3,
        read_qk=0.02,
        read_av=0.02,
        mismatch_gain=0.05,
        mismatch_offset_v=0.02,
        column_gain=0.02,
        column_offset=0.01,
    )


def with_cell(hardware: Hardware, cell: Cell) -> Hardware:
    """`hardware` with another cell, sharing nothing with the original.

    Raises:
        ConfigError: they do not fit, such as levels above the cell's supply.
    """
    return replace(Hardware.from_dict(hardware.to_dict()), cell=cell)


def linearised(hardware: Hardware) -> Hardware:
    """`hardware` with the linear cell in place of its own; every other property stays. The linear stage runs on
    this."""
    return with_cell(
        hardware, replace(_linear_cell(), supply_v=hardware.cell.supply_v, offset_v=hardware.cell.offset_v)
    )
