"""The digital logic beside the arrays, counted: feature transforms, look-ups, age compensation, and tokens of a digital
copy.

Counts per token of a layer, with K tokens kept by pruning, P protected ones, and D, T, H and H_kv as in
:mod:`aimc.circuit.cost.attention`. All numbers are in half precision; each query
head reads the copy for itself.

| part | energy of a layer | when |
|---|---|---|
| level look-ups | (2·H_kv·D for storage, H·D, H·T, … for other converters)·table | levels at equal charge or listed |
| centred keys, in feature transforms | H_kv·D·addition | rotary positions |
| balance, likewise | (H + H_kv)·D·multiplication | rotary positions |
| rotation of q and k, likewise | (H + H_kv)·D·log2 D·addition (Hadamard), or (H + H_kv)·D²·mac | rotary positions |
| age compensation | H·T·(2·multiplication + 3·addition) + T·table | `leakage.compensate` |
| normalising | N·(D·(mac + multiplication) + table), H·T·multiplication for keys, for values | N vectors are divided |
| digital recomputation | H·K·2·D·mac, or H·K·D·mac of values alone | `pruned_softmax` |
| protected tokens | H·P·2·D·mac | `protection` |
| digital copy | (H·(K + P)·2·D + 2·H_kv·D)·value_bytes·sram: reads, and the write of the token | both |

Costs nothing: a full scale per layer or head, a reference that is set once and not per token (its DAC's area is not
published, and not counted); centring, rotation and balance of values, and of queries and keys without rotary positions,
which are folded into weights and biases of the projections; the factor 1/√D of a Hadamard matrix, folded into the
scalers. The fast Walsh-Hadamard transform takes log2 D rounds of D additions.
"""

from __future__ import annotations

import math

from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.shape import ModelShape
from aimc.hardware import ConfigError, Hardware

LOOKUPS, FEATURES, COMPENSATION = "level look-ups", "feature transforms", "age compensation"
NORMALISING = "normalising"
RECOMPUTED, PROTECTED, COPY = "digital recomputation", "protected tokens", "digital copy"


class DigitalCounts:
    """What the digital logic of one layer does per token.

    Args:
        shape: of the model.
        hardware: of this layer.
        parameters: unit numbers.
        held: T, tokens in its arrays.
    """

    def __init__(self, shape: ModelShape, hardware: Hardware, parameters: CostParameters, held: int) -> None:
        self.shape, self.hardware, self.p, self.held = shape, hardware, parameters, held
        n_protected = hardware.protection.n_sink + hardware.protection.n_recent
        self.n_protected = min(n_protected, held) if held < hardware.array.window else n_protected
        """That are read: of a text that is shorter than the window no more than there are; first tokens are read for
        ever."""
        self.room_for_protected = n_protected
        self.pruned = hardware.activation == "pruned_softmax"
        self.scores_are_recomputed = hardware.pruning.recompute == "scores"
        selectable = max(held - self.n_protected, 0)
        wanted = max(math.ceil(selectable * hardware.pruning.kept_share - 1e-6), 1)  # as the operator rounds
        self.n_kept = min(wanted, selectable) if self.pruned else 0
        """K: tokens that the arrays select, of those that are not protected; ties of a ramp's last step come on top."""

    @property
    def n_products(self) -> int:
        """Dot products of D features per token of a query: of protected tokens score and value, of kept ones value
        alone where their scores are the ADC's."""
        return 2 * self.n_protected + (2 if self.scores_are_recomputed else 1) * self.n_kept

    def energy(self) -> dict[str, float]:
        """Joule per token of one layer, of the parts that it has."""
        p, d, heads = self.p, self.shape.head_size, self.shape.query_heads
        parts = {LOOKUPS: self._lookups() * p.table_energy_j, FEATURES: self._features()[0]}
        if self._compensates:
            per_score = 2 * p.multiplication_energy_j + 3 * p.addition_energy_j
            parts[COMPENSATION] = heads * self.held * per_score + self.held * p.table_energy_j
        parts[NORMALISING] = self._normalising()
        if self.pruned:
            parts[RECOMPUTED] = heads * (self.n_products - 2 * self.n_protected) * d * p.mac_energy_j
        parts[PROTECTED] = heads * 2 * self.n_protected * d * p.mac_energy_j
        moved = heads * self.n_products * d + self._values_written()
        parts[COPY] = moved * p.value_bytes * p.sram_energy_j_per_byte
        return {name: value for name, value in parts.items() if value}

    def features_s(self) -> float:
        """Second per token for the feature transforms, on the digital machine that makes the projections."""
        return self.p.batch * self._features()[1] / self.p.mac_rate_per_s

    def products_s(self, n_products: int) -> float:
        """Second for so many dot products of D features in the unit of a K/V head."""
        return math.ceil(n_products * self.shape.head_size / self.p.mac_lanes) * self.p.mac_latency_s

    def area(self) -> dict[str, float]:
        """Square metre of one K/V head: the copy, and the unit that reads it. The transforms' logic is that of the
        projections, whose area is not counted here either."""
        if not (self.pruned or self.n_protected):
            return {}
        protection, tokens = self.hardware.protection, self.room_for_protected
        if self.pruned:
            tokens = max(self.hardware.array.window, protection.n_recent) + protection.n_sink
        bits = tokens * self._stored_per_head() * 8 * self.p.value_bytes
        unit = RECOMPUTED if self.pruned else PROTECTED
        return {unit: self.p.mac_lanes * self.p.mac_area_m2, COPY: bits * self.p.sram_bit_area_m2}

    @property
    def _compensates(self) -> bool:
        return self.hardware.leakage.compensate and self.hardware.leakage.tau_s is not None

    def _normalising(self) -> float:
        """Joule per token: sums of squares and divisions of the vectors, and a factor of each held token."""
        features, p, d = self.hardware.features, self.p, self.shape.head_size
        heads, kv_heads = self.shape.query_heads, self.shape.kv_heads
        n_stored = features.normalise_keys + features.normalise_values
        vectors = heads * features.normalise_queries + kv_heads * n_stored
        of_vector = d * (p.mac_energy_j + p.multiplication_energy_j) + p.table_energy_j
        return vectors * of_vector + n_stored * heads * self.held * p.multiplication_energy_j

    def _stored_per_head(self) -> int:
        """Numbers of a token in the copy: keys are not needed where no score is digital."""
        both = self.scores_are_recomputed or self.n_protected or not self.pruned
        return (2 if both else 1) * self.shape.head_size

    def _values_written(self) -> int:
        """Numbers per token; first tokens alone are written once a text."""
        every_token = self.pruned or self.hardware.protection.n_recent
        return self.shape.kv_heads * self._stored_per_head() if every_token else 0

    def _lookups(self) -> int:
        """Numbers that pass a table of levels: in front of a DAC, behind an ADC or a counter."""
        hardware, d, heads = self.hardware, self.shape.head_size, self.shape.query_heads
        n_arrays = 1 if self.pruned else 2
        numbers = {"input_dac": heads * d, "storage_dac": n_arrays * self.shape.kv_heads * d}
        if hardware.has_softmax:
            numbers["score_adc"] = heads * self.held
        if hardware.activation == "softmax":
            numbers["probability_dac"] = heads * self.held
        if not self.pruned:
            numbers["readout"] = heads * d * math.ceil(self.held / hardware.array.rows)
        of_tables = [n for name, n in numbers.items() if getattr(hardware, name).spacing != "uniform"]
        if hardware.normaliser.is_on and hardware.normaliser.counter.spacing != "uniform":
            of_tables.append(heads * math.ceil(self.held / hardware.array.rows))
        return sum(of_tables)

    def _features(self) -> tuple[float, int]:
        """Joule and operations per token of what cannot be folded into weights.

        Raises:
            ConfigError: a Hadamard matrix of a size that is no power of two.
        """
        features, d = self.hardware.features, self.shape.head_size
        rotations = {"rotation_qk": features.rotation_qk, "rotation_av": features.rotation_av}
        for name, kind in rotations.items():
            if kind == "hadamard" and d & (d - 1):
                raise ConfigError(
                    f"features.{name}='hadamard': heads of {d} features, and a Hadamard matrix needs a power of two;"
                    " use 'orthogonal'"
                )
        if not self.shape.rotary:
            return 0.0, 0
        vectors = self.shape.query_heads + self.shape.kv_heads
        additions = self.shape.kv_heads * d if features.centre_keys else 0
        additions += vectors * d * (d.bit_length() - 1) if features.rotation_qk == "hadamard" else 0
        multiplications = vectors * d if features.balance else 0
        macs = vectors * d * d if features.rotation_qk == "orthogonal" else 0
        p = self.p
        energy_j = additions * p.addition_energy_j + multiplications * p.multiplication_energy_j + macs * p.mac_energy_j
        return energy_j, additions + multiplications + macs
