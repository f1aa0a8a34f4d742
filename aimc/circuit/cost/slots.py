"""Energy, latency and area of a bounded memory of slots with gates (Gated Slot Attention, arXiv 2409.07146) per token.

Reading m slots is reading arrays of m tokens, and is counted as attention with a softmax is
(:mod:`aimc.circuit.cost.attention`). What differs is writing: every token moves every slot, `u ← α·u + (1 − α)·k`. How
the gate α comes about is the question; three answers, with H heads, D features and m slots a layer:

| gate | energy of a layer, in place of the writes of attention | latency |
|---|---|---|
| `pulse` | 2·H·m·D·write + H·m·(n_gate − 1)·dac_step + H·m·routing | a write, or the longest gate if longer |
| `refresh` | 2·H·m·D·(read + n_adc·adc_step + 2·mac + n_store·dac_step + write) | m·(read + ADC + write), row by row |
| `digital` | H·6·m·D·mac + H·4·m·D·value_bytes·sram, and nothing of the arrays | MACs ÷ lanes |

`pulse` is a write that is cut short: the gate is the width of the pulse on a slot's word line, and the cell relaxes
towards the bit line by exactly `1 − α`; the energy of a whole write is charged for it, an upper bound. `refresh` reads
every slot, multiplies in digital and writes it again, for cells whose write cannot be cut short. `digital` keeps the
slots in SRAM beside a digital unit: each cell is read and written once by the update, whose product with `1 − α` and
sum are two multiply-accumulates, and takes part in one of the two products of the read; the softmax is the same.
Projections of q, k, v, the gates (hidden·H·m) and the output are digital in all three and not counted, as elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import replace

from aimc.circuit.cost.attention import DACS, SOFTMAX, WRITES, Breakdown, Cost, attention_cost
from aimc.circuit.cost.converters import converter_steps
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.shape import ModelShape
from aimc.hardware import ConfigError, Hardware

KINDS = ("pulse", "refresh", "digital")
"""How the gate comes about."""
GATES, REWRITING, UPDATE, READ, MEMORY = (
    "gate pulses",
    "rewriting of slots",
    "digital update",
    "digital products",
    "slots in SRAM",
)


def slot_cost(
    shape: ModelShape,
    hardware: Hardware,
    *,
    gate: str = "pulse",
    gate_levels: int = 64,
    parameters: CostParameters | None = None,
) -> Cost:
    """What a bounded memory costs per token, however long the text.

    Args:
        shape: layers, heads and head size; each head has slots of its own (`kv_heads` as many as `query_heads`).
        hardware: with `activation="softmax"`; `array.window` is the number of slots m.
        gate: `pulse`, `refresh` or `digital`.
        gate_levels: widths of a gate's pulse; a step lasts one clock.
        parameters: unit numbers; None: the defaults.

    Returns:
        The whole model's cost; `.layer` and `.head` are shares of it.

    Raises:
        ConfigError: another activation, or a converter without levels.
        ValueError: an unknown gate, or heads that share slots.
    """
    if gate not in KINDS:
        raise ValueError(f"gate={gate!r}: unknown; use one of {', '.join(KINDS)}")
    if gate_levels < 2:
        raise ValueError(f"gate_levels={gate_levels}: a pulse has at least two widths; give 2 or more")
    if hardware.activation != "softmax":
        raise ConfigError(
            f"activation={hardware.activation!r}: between the two products of slots stands a softmax; use"
            " aimc.presets.with_softmax(hardware)"
        )
    if shape.group != 1:
        raise ValueError(
            f"kv_heads={shape.kv_heads}, query_heads={shape.query_heads}: each head writes slots of its own; give as"
            " many kv_heads as query_heads"
        )
    p = parameters or CostParameters()
    read = attention_cost(shape, hardware, p)
    if gate == "digital":
        return _digital(read, shape, hardware, p)
    n_slots, n_layers = hardware.array.window, shape.n_on_arrays
    slots = n_layers * shape.query_heads * n_slots
    cells = 2 * slots * shape.head_size
    energy, latency, area = Breakdown(read.energy_j), Breakdown(read.latency_s), Breakdown(read.area_m2)
    energy[WRITES] = cells * p.write_energy_j
    if gate == "pulse":
        steps = gate_levels - 1
        energy[GATES] = slots * (steps * p.dac_energy_j_per_step + p.routing_energy_j)
        area[GATES] = slots * p.pulse_generator_area_m2
        latency[WRITES] = n_layers * max(p.write_latency_s, steps * p.clock_s)
    else:
        levels = converter_steps(hardware.score_adc, "score_adc") + 1
        of_read = (p.read_energy_qk_j + p.read_energy_av_j) / 2
        energy[REWRITING] = cells * (of_read + levels * p.adc_energy_j_per_step + 2 * p.mac_energy_j)
        energy[DACS] += cells * converter_steps(hardware.storage_dac, "storage_dac") * p.dac_energy_j_per_step
        row_s = p.settle_latency_s + p.pulse_max_s + p.adc_latency_s_per_bit * math.log2(levels) + p.write_latency_s
        latency[REWRITING] = n_layers * n_slots * row_s
        latency[WRITES] = 0.0  # in the rewriting
    return replace(read, energy_j=energy, latency_s=latency, area_m2=area, interval_s=latency.total / n_layers)


def _digital(read: Cost, shape: ModelShape, hardware: Hardware, p: CostParameters) -> Cost:
    """The same in SRAM beside multiply-accumulate units, 64 lanes a head unless told otherwise."""
    n_layers, heads = shape.n_on_arrays, shape.query_heads
    numbers = 2 * hardware.array.window * shape.head_size  # of one head
    softmax = {SOFTMAX: read.energy_j[SOFTMAX]}
    energy = Breakdown(
        softmax
        | {
            UPDATE: n_layers * heads * 2 * numbers * p.mac_energy_j,
            READ: n_layers * heads * numbers * p.mac_energy_j,
            MEMORY: n_layers * heads * 2 * numbers * p.value_bytes * p.sram_energy_j_per_byte,
        }
    )
    step_s = n_layers * math.ceil(numbers / p.mac_lanes) * p.mac_latency_s
    latency = Breakdown({SOFTMAX: read.latency_s[SOFTMAX], UPDATE: 2 * step_s, READ: step_s})
    area = Breakdown(
        {
            MEMORY: n_layers * heads * numbers * 8 * p.value_bytes * p.sram_bit_area_m2,
            READ: n_layers * heads * p.mac_lanes * p.mac_area_m2,
            SOFTMAX: read.area_m2[SOFTMAX],
        }
    )
    return replace(read, energy_j=energy, latency_s=latency, area_m2=area, interval_s=latency.total / n_layers)
