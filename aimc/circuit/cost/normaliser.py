"""What the normaliser column of the second array and the digital factors behind it cost, per layer.

The column is one more among D: cells, counter, adders and routing of each sub-tile. Digital logic takes one reciprocal
a token and head (a look-up and one Newton step, two multiply-accumulates) and multiplies the D features of the output;
a gain by position is a look-up and the same multiplication, which both share.
"""

from __future__ import annotations

from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.shape import ModelShape
from aimc.hardware import Hardware

NORMALISER, POSITION = "normaliser column", "position gain"


def normaliser_energy(
    shape: ModelShape, hardware: Hardware, p: CostParameters, *, held: int, sub_tiles: int, steps: int, pulse_s: float
) -> dict[str, float]:
    """Joule per token of one layer, of the parts that it has.

    Args:
        shape: of the model.
        hardware: of this layer.
        p: unit numbers.
        held: tokens in its arrays.
        sub_tiles: in use.
        steps: of the column's counter; 0 without the column.
        pulse_s: longest pulse into the second array, second.
    """
    heads, parts = shape.query_heads, {}
    products = shape.head_size * p.multiplication_energy_j
    if hardware.normaliser.is_on:
        cells = held * p.read_energy_av_j * pulse_s / p.read_pulse_s
        readout = p.pulse_generator_energy_j + steps * p.counter_energy_j_per_step
        readout += p.adder_energy_j + p.routing_energy_j
        reciprocal = p.table_energy_j + 2 * p.mac_energy_j
        parts[NORMALISER] = heads * (cells + sub_tiles * readout + reciprocal + products)
    if hardware.position_gain:
        own = p.multiplication_energy_j if hardware.normaliser.is_on else products
        parts[POSITION] = heads * (p.table_energy_j + own)
    return parts


def normaliser_area(hardware: Hardware, p: CostParameters, adders_per_area: int) -> dict[str, float]:
    """Square metre of one K/V head."""
    if not hardware.normaliser.is_on:
        return {}
    array = hardware.array
    of_tile = p.pulse_generator_area_m2 + p.counter_area_m2 + p.adder_area_m2 / adders_per_area + p.routing_area_m2
    return {NORMALISER: array.window * p.cell_area_m2 + array.n_tiles * of_tile}
