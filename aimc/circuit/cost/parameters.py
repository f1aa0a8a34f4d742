"""Unit energies, times and areas of the cost model: each a field with its unit, its default, and where that comes from.

A default is `published` (stands in a paper), `derived` (what remains of a published number once assumptions are taken
off, or a published number divided by a count) or `assumed` (nobody published it: an engineering estimate, whose weight
:func:`aimc.circuit.sensitivity` shows).

Sources:
    [L25] as in :mod:`aimc.circuit.cost.published`.
    [H14] M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014: energies at 45 nm, 0.9 V;
        also 10 pJ and 20 pJ for reading 8 bytes from a memory of 8 KB and of 32 KB.
    [M] B. Murmann, ADC Performance Survey: good converters take about 10 fJ per conversion step.
    [O17] M. O'Connor et al., "Fine-grained DRAM", MICRO 2017: HBM2 takes 3.9 pJ/bit.
    [T09] Taiwan Semiconductor, Symposium on VLSI Technology 2009: SRAM of 28 nm with a cell of 0.127 µm².
    [N] NVIDIA H100 SXM data sheet: 989 TFLOP/s dense bfloat16, 3.35 TB/s.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any

from aimc.circuit.cost import published
from aimc.circuit.cost.report import si, table
from aimc.hardware.checks import check_fields

BASES = ("published", "derived", "assumed")


def _number(default: float | None, unit: str, basis: str, *, off: bool = False) -> Any:
    """A field with what it is in its metadata; `off`: zero switches it off, otherwise it is positive."""
    return field(default=default, metadata={"unit": unit, "basis": basis, "off": off})


_CELLS = published.HEAD_SIZE * published.WINDOW
_SIGNALS = published.WINDOW + published.HEAD_SIZE * published.WINDOW // published.ROWS
"""Signals that are routed per token and head at the published point: one pulse per slot, one partial sum per sub-tile
and feature."""
_PARTIAL_SUMS = published.HEAD_SIZE * published.WINDOW // published.ROWS
_DAC_STEPS = published.HEAD_SIZE * (published.INPUT_LEVELS - 1 + 2 * (published.STORAGE_LEVELS - 1))
_COUNTER_STEPS = _PARTIAL_SUMS * (published.READOUT_LEVELS // 2 - 1)
_WRITE_J = 17e-15
_COUNTER_J, _ADDER_J = 20e-15, 50e-15
_CELL_M2, _DAC_M2, _PULSE_GENERATOR_M2, _COUNTER_M2, _ADDER_M2 = 1e-12, 200e-12, 50e-12, 100e-12, 500e-12
_PERIPHERY_M2 = (
    3 * published.HEAD_SIZE * _DAC_M2
    + _SIGNALS * _PULSE_GENERATOR_M2
    + _PARTIAL_SUMS * _COUNTER_M2
    + published.HEAD_SIZE * _ADDER_M2
    + 2 * _CELLS * _CELL_M2
)


@dataclass(slots=True, kw_only=True)
class CostParameters:
    """Every unit number of the cost model. The defaults give the published point of [L25] exactly; replace what you
    know better."""

    read_energy_qk_j: float = _number(published.FIRST_ARRAY_J / _CELLS, "J", "derived")
    """Mean energy of one cell of the first array at one read, joule, at a longest pulse of `read_pulse_s`, 17.1 fJ:
    [L25]'s 1120 pJ ÷ (1024·64), which includes the charge-to-pulse circuits. A transistor-level cell supplies its
    own."""
    read_energy_av_j: float = _number(published.SECOND_ARRAY_J / _CELLS, "J", "derived")
    """The same of the second array, 10.7 fJ: [L25]'s 700 pJ ÷ (1024·64). It is lower because φ is short or zero for
    most tokens behind a hard sigmoid; behind a softmax the pulses are shorter still, and this default is an upper
    bound."""
    read_pulse_s: float = _number(published.PULSE_S, "s", "published")
    """Longest pulse for which the two read energies are stated, second; they grow in proportion to the pulse."""
    write_energy_j: float = _number(_WRITE_J, "J", "assumed", off=True)
    """Energy of writing one cell, write line included, joule: (1 fF cell + 20 fF line)·(0.9 V)². [L25] does not tell it
    apart; the default
    of `dac_energy_j_per_step` is what remains of its 330 pJ, so that both together are the published figure. 0:
    none."""
    dac_energy_j_per_step: float = _number(
        (published.DACS_J - 2 * published.HEAD_SIZE * _WRITE_J) / _DAC_STEPS, "J", "derived"
    )
    """Energy per step (level − 1) of one conversion of an input or storage DAC, joule, 0.177 pJ: [L25]'s 330 pJ less
    the writes, ÷ 1856 steps. That the two kinds of DAC take the same per step is assumed."""
    pulse_generator_energy_j: float = _number(0.0, "J", "published", off=True)
    """Energy of one charge-to-pulse circuit at one read, joule. 0: in the read energies, as in [L25]; give it with a
    read energy that is the cells' alone."""
    counter_energy_j_per_step: float = _number(_COUNTER_J, "J", "assumed")
    """Energy of one count of one counter, joule: two flip-flops toggle, five are clocked. Small beside the routing."""
    adder_energy_j: float = _number(_ADDER_J, "J", "assumed")
    """Energy of adding one partial sum, joule: about ten bits; [H14] gives 30 fJ for 8 bits and 100 fJ for 32."""
    routing_energy_j: float = _number(
        (published.DIGITAL_J - _COUNTER_STEPS * _COUNTER_J - _PARTIAL_SUMS * _ADDER_J) / _SIGNALS, "J", "derived"
    )
    """Energy of routing and control per routed signal (a pulse per slot; a partial sum per sub-tile and feature),
    joule, 1.78 pJ: [L25]'s 4000 pJ of digital control less counters and adders, ÷ 2048 signals. The sum is published,
        the division is assumed."""
    refresh_interval_s: float | None = _number(None, "s", "published", off=True)
    """Time after which every cell is written anew, second; None: never, as in [L25], where a token leaves the window
    before it leaks."""

    pulse_max_s: float = _number(published.PULSE_S, "s", "published")
    """Longest pulse, second, 15 ns: of a converter of `pulse_levels` levels, and of the charge-to-pulse circuits behind
    the first array."""
    pulse_levels: int = _number(published.INPUT_LEVELS, "", "published")
    """Levels of that converter. The clock stays for other level counts: one step is pulse_max_s ÷ (pulse_levels − 1), 1
    ns."""
    write_latency_s: float = _number(10e-9, "s", "assumed")
    """Time of writing a token, second, ahead of the read that it takes part in: keys and values together. Of [L25]'s 65
    ns three pulses are 45 ns; how the other 20 divide into writing, settling and adding is assumed."""
    settle_latency_s: float = _number(2.5e-9, "s", "assumed", off=True)
    """Time in which an array's lines settle ahead of its pulses, second."""
    adder_latency_s: float = _number(1.25e-9, "s", "assumed", off=True)
    """Time of one level of the adder tree, second; log2(W/R) levels."""
    pipeline_depth: int = _number(1, "", "assumed")
    """Reads that are under way at once in different stages of one pair of arrays, where several want it: query heads of
    a group, or tokens of
    a prompt. 1: one after another."""

    cell_area_m2: float = _number(_CELL_M2, "m²", "assumed")
    """Area of one cell, square metre, 1 µm². A transistor-level cell supplies its own."""
    dac_area_m2: float = _number(_DAC_M2, "m²", "assumed")
    """Area of one DAC, square metre; 3·D of them: for q, k and v."""
    pulse_generator_area_m2: float = _number(_PULSE_GENERATOR_M2, "m²", "assumed")
    """Area of one charge-to-pulse circuit, square metre; one per slot, and one per sub-tile and feature."""
    counter_area_m2: float = _number(_COUNTER_M2, "m²", "assumed")
    """Area of one counter, square metre; one per sub-tile and feature."""
    adder_area_m2: float = _number(_ADDER_M2, "m²", "assumed")
    """Area of one feature's adder tree per 16 partial sums, square metre."""
    routing_area_m2: float = _number((published.AREA_M2 - _PERIPHERY_M2) / _SIGNALS, "m²", "derived")
    """Area of routing and control per routed signal, square metre, 45.8 µm²: [L25]'s 0.5 mm² less everything above, ÷
    2048 signals."""

    adc_energy_j_per_step: float = _number(10e-15, "J", "assumed")
    """Energy per level of one conversion of a score ADC, joule [M]; only with a softmax, like the seven
    below."""
    adc_latency_s_per_bit: float = _number(1e-9, "s", "assumed")
    """Time per bit of a score ADC, second; all slots convert at once."""
    adc_area_m2: float = _number(500e-12, "m²", "assumed")
    """Area of one score ADC, square metre; one per slot."""
    ramp_share: float = _number(0.5, "", "assumed")
    """Share of a ramp ADC's steps that pass before it has selected the kept tokens, with `pruned_softmax`; 1 and more:
    all of them. One half: less than half of the tokens is kept, and scores lie about the middle of a signed range. A
    ramp takes a clock a step."""
    exponential_energy_j: float = _number(3e-12, "J", "assumed")
    """Energy of exponential and normalisation of one score, joule: two multiply-adds in half precision [H14]."""
    softmax_lanes: int = _number(64, "", "assumed")
    """Scores that the softmax unit takes at once."""
    softmax_latency_s: float = _number(1e-9, "s", "assumed")
    """Time of one such step, second; scores pass twice, for their sum and for the division."""
    softmax_area_m2: float = _number(2000e-12, "m²", "assumed")
    """Area of one lane of the softmax unit, square metre."""

    mac_energy_j: float = _number(1.5e-12, "J", "published")
    """Energy of one digital multiply-accumulate, joule: half precision, multiply 1.1 pJ and add 0.4 pJ [H14]."""
    addition_energy_j: float = _number(0.4e-12, "J", "published")
    """Energy of one digital addition of features or scores, joule: half precision [H14]."""
    multiplication_energy_j: float = _number(1.1e-12, "J", "published")
    """Energy of one digital multiplication of features or scores, joule: half precision [H14]."""
    table_energy_j: float = _number(10e-12 / 8, "J", "derived")
    """Energy of one look-up, joule, 1.25 pJ: one byte of an 8 KB memory [H14]. Tables of levels and of what a token of
    some age has kept are smaller, so it is an upper bound."""
    sram_energy_j_per_byte: float = _number(20e-12 / 8, "J/byte", "derived")
    """Energy of reading one byte of the digital copy of keys and values, joule per byte, 2.5 pJ: a 32 KB memory [H14],
    of which a copy has several. That a write takes as much is assumed."""
    sram_bit_area_m2: float = _number(2 * 0.127e-12, "m²", "assumed")
    """Area of one bit of that copy, square metre: a cell [T09], and as much again for its periphery."""
    mac_lanes: int = _number(64, "", "assumed")
    """Multiply-accumulates that the digital unit of a K/V head does at once, for kept and protected tokens; its copy is
    as wide."""
    mac_latency_s: float = _number(1e-9, "s", "assumed")
    """Time of one such step, second."""
    mac_area_m2: float = _number(2000e-12, "m²", "assumed")
    """Area of one lane of that unit, square metre; as of the softmax unit."""
    memory_energy_j_per_byte: float = _number(31.2e-12, "J/byte", "published")
    """Energy of reading one byte of weights, or of a digital machine's keys and values, joule per byte: HBM2 [O17]."""
    value_bytes: float = _number(2.0, "byte", "assumed")
    """Bytes of one weight, key or value in a memory or the digital copy; 2: bfloat16."""
    mac_rate_per_s: float = _number(494.5e12, "MAC/s", "published")
    """Multiply-accumulates per second of the digital machine [N]."""
    memory_rate_bytes_per_s: float = _number(3.35e12, "byte/s", "published")
    """Bytes per second of its memory [N]."""
    signed_passes: int = _number(1, "", "assumed")
    """Reads of the first array that a signed query takes, where the input DAC has a sign: 1, a line is driven with
    either polarity; 2, positive pulses and then negative ones, which together are as long."""
    signed_arrays: int = _number(1, "", "assumed")
    """K arrays that a signed query reads at once: 2, a second line a feature with cells of its own, and the charges are
    subtracted."""
    batch: float = _number(1.0, "", "assumed")
    """Sequences that share one reading of the weights. Each has its own keys and values, hence its own arrays: the area
    is that of one."""

    def __post_init__(self) -> None:
        check_fields(self)
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None:
                continue
            if value < 0 or (value == 0 and not _may_be_zero(f)):
                remedy = "0 switches it off" if _may_be_zero(f) else "give a value above zero"
                raise ValueError(f"{f.name}={value!r} {f.metadata['unit']}: nothing costs less than nothing; {remedy}")
        counts = ("pulse_levels", "pipeline_depth", "softmax_lanes", "mac_lanes", "signed_passes", "signed_arrays")
        for name in counts:
            least = 2 if name == "pulse_levels" else 1
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name}={value!r}: a count; give a whole number, at least {least}")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch!r}: at least one sequence reads the weights; give 1 or more")

    def __str__(self) -> str:
        rows = []
        for f in fields(self):
            value = getattr(self, f.name)
            rows.append(
                (
                    f.name,
                    "off" if value is None else si(value, f.metadata["unit"]),
                    f.metadata["basis"] if value == f.default else "given",
                )
            )
        return table(("parameter", "value", "basis"), rows)

    @property
    def clock_s(self) -> float:
        """Time of one step of a pulse or counter, second."""
        return self.pulse_max_s / (self.pulse_levels - 1)


def _may_be_zero(f: Field[Any]) -> bool:
    return bool(f.metadata["off"]) and f.default is not None


def unit_of(name: str) -> str:
    """Unit of a parameter, `` for a bare number."""
    return str(_metadata(name)["unit"])


def basis_of(name: str) -> str:
    """`published`, `derived` or `assumed`: where the default of a parameter comes from."""
    return str(_metadata(name)["basis"])


def _metadata(name: str) -> Any:
    return next(f.metadata for f in fields(CostParameters) if f.name == name)
