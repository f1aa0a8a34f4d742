"""The slots of one layer in gain cells: the gate is a write that is cut short, and leakage is a gate that nobody set.

One slot is a row of cells. A token opens the write transistors of slot i for a pulse of `w_i = −log α_i` time constants
RC of the write path, while the storage DAC holds the token's key (and value) on the bit lines. A cell that was at u
then goes to `α·u + (1 − α)·k̂`: the gated update itself, without reading or multiplying anything. What the memory costs
beside attention's arrays is that every token writes to all slots; see :mod:`aimc.circuit.cost.slots`.

| step | equation |
|---|---|
| leakage of a token time | `u ← u·exp(−λ)`, towards the leak target |
| gate pulse | `ŵ = Q(clip(−log α, 0, w_max))`, `α̂ = exp(−ŵ)` |
| write | `u ← α̂·u + (1 − α̂)·(k̂ − V_o) + √(1 − α̂²)·σ_w·ξ` |
| first array | `S_i = Σ_d q̂_d·p(u_id)`, score ADC, softmax over slots in digital |
| second array | `A_jd = Σ_{i in sub-tile j} φ_i·p(u_id)`, counters, digital sum |

The noise of the write is that of an RC circuit which relaxes for a while (Ornstein-Uhlenbeck): a closed gate adds none,
a long one replaces what was there by `σ_w`, √(kT/C). Everything else is the hardware of attention, effect by effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from aimc.hardware import ConfigError, Converter, Hardware
from aimc.models.gsa.memory import Memory
from aimc.models.selective_scan import Recurrence
from aimc.nn.scaler import AffineScaler, kept_precise
from aimc.ops.effects.cell import cell_coefficients, leaking_cell
from aimc.ops.effects.columns import with_columns
from aimc.ops.effects.converters import adc, dac, storage_dac
from aimc.ops.effects.noise import ArrayId, Chip, draw_seed

if TYPE_CHECKING:
    from aimc.models.gsa.config import GSAConfig

GATE = Converter(n_levels=64, v_min=0.0, v_max=1.0)
"""Pulse of a gate in time constants: 64 levels to one RC, so that a slot keeps between 37 % and all of what it holds.
Gates are sigmoids to the power 1/8, and one that is shut starts at 0.09."""
TOGETHER = 256
"""Tokens at once on an accelerator."""
SCALES = ("score_full_scale", "readout_full_scale")


class SlotArrays(nn.Module):
    """Key and value slots of one layer in cells, read and written token by token.

    Trained are the scalers and `score_gain` `[H]` (from charge in full scales to logits); `score_full_scale` and
    `readout_full_scale` `[H]` are set by :func:`aimc.models.gsa.calibrate_slots`.

    Args:
        n_heads: H.
        n_slots: m.
        hardware: with `activation="softmax"`; its `array.rows` are the slots that share a counter. The window has no
            meaning here.
        gate: pulses of the write transistors, in time constants RC of the write path.
        layer: in the model, part of every cell's address.
        n_layers: of the model: steps that a token takes, where the hardware leaves its time open.

    Raises:
        ConfigError: hardware that slots cannot be on.
    """

    score_full_scale: Tensor
    readout_full_scale: Tensor

    def __init__(self, n_heads: int, n_slots: int, hardware: Hardware, gate: Converter, layer: int, n_layers: int):
        super().__init__()
        _check(hardware, gate, n_slots)
        self.n_slots, self.layer, self.n_layers, self.gate = n_slots, layer, n_layers, gate
        self.chip_seed = 0
        """Which chip's mismatch the cells have."""
        self.generator: torch.Generator | None = None
        """Source of write and read noise; None: torch's global one."""
        self.together: int | None = None
        """Tokens that are computed at once, which takes the memory of as many times the slots. None: one on a CPU;
        :data:`TOGETHER` on an accelerator, where a loop over tokens waits for its calls, seconds a step."""
        self.take(hardware)
        rest_v = hardware.cell.offset_v
        self.query_scaler, self.output_scaler = AffineScaler(n_heads), AffineScaler(n_heads)
        self.key_scaler, self.value_scaler = (AffineScaler(n_heads, offset=rest_v) for _ in range(2))
        self.score_gain = nn.Parameter(torch.ones(n_heads))
        for name in SCALES:
            self.register_buffer(name, torch.ones(n_heads))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SlotArrays:
        """Scalers stay in float32 when the model is cast to half precision; they move with it."""
        return super()._apply(kept_precise(fn), recurse)

    def take(self, hardware: Hardware) -> None:
        """Go on with a copy of other hardware, scalers as they are."""
        _check(hardware, self.gate, self.n_slots)
        self.hardware = Hardware.from_dict(hardware.to_dict())
        leakage = self.hardware.leakage
        if leakage.token_time_s is None:
            token_time_s = self.n_layers * leakage.step_latency_s
            self.hardware.leakage = replace(leakage, token_time_s=token_time_s)

    @property
    def machine(self) -> Hardware:
        """The hardware, by the name that attention's arrays have for it."""
        return self.hardware

    @classmethod
    def from_record(cls, record: dict[str, Any], config: GSAConfig, layer: int) -> SlotArrays:
        """As :meth:`record` has described them.

        Raises:
            ConfigError: a record that is damaged, or of an unknown version.
        """
        arrays = cls(
            config.num_attention_heads,
            config.num_slots,
            Hardware.from_dict(record["hardware"]),
            Converter(**record["gate"]),
            layer,
            config.num_hidden_layers,
        )
        arrays.chip_seed = record.get("chip_seed", 0)
        return arrays

    def record(self) -> dict[str, Any]:
        """What `config.json` says of them."""
        return {"hardware": self.hardware.to_dict(), "gate": asdict(self.gate), "chip_seed": self.chip_seed}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """As :func:`aimc.models.gsa.memory.recurrent`; the memory is in volt about the voltage that cells leak to."""
        with torch.autocast(q.device.type, enabled=False):
            pulses = dac(self.query_scaler(q), self.hardware.input_dac)
            rest_v = leaking_cell(self.hardware).offset_v
            stored = [
                storage_dac(scaler(x), self.hardware) - rest_v
                for scaler, x in ((self.key_scaler, k), (self.value_scaler, v))
            ]
            gates = torch.exp(-dac(-log_gate, self.gate))  # [B, H, T, m]
            cells = [self._coefficients(array, q) for array in ArrayId]
            size, out = self.together or (1 if q.device.type == "cpu" else TOGETHER), []
            # not by index: the gradient of each slice would be a whole tensor of zeros
            parts = (x.split(size, dim=2) for x in (pulses, *stored, gates))
            with self._drawing_on(q.device):
                for pulse, key, value, gate in zip(*parts, strict=True):
                    held = Memory(*(self._written(*one, gate) for one in zip(memory, (key, value), strict=True)))
                    memory = Memory(*(u[:, :, -1] for u in held))
                    widths, longest = self._scores(pulse, held.keys, cells[ArrayId.QK])
                    out.append(self._sums(widths, held.values, cells[ArrayId.AV]) * longest)
            return self.output_scaler(torch.cat(out, dim=2)), memory

    @contextmanager
    def _drawing_on(self, device: torch.device) -> Iterator[None]:
        """Noise is drawn where it is needed: from a generator of another device comes a seed alone."""
        given = self.generator
        if given is None or given.device.type == device.type:
            yield
            return
        self.generator = torch.Generator(device).manual_seed(int(draw_seed(given, given.device)))
        try:
            yield
        finally:
            self.generator = given

    def _written(self, u: Tensor, target: Tensor, gate: Tensor) -> Tensor:
        """What slots that held `u` `[B, H, m, D]` hold after each of the next tokens, `[B, H, T, m, D]`: they leak for
        a token time, then go towards the token's `[B, H, T, D]` as far as their gates `[B, H, T, m]` let them."""
        kept, sigma = math.exp(-self.hardware.leakage.decay_per_token), self.hardware.noise.write_v
        gate = gate[..., None]
        new = (1.0 - gate) * target[..., None, :]
        first = gate[:, :, :1] * (u * kept)[:, :, None]
        new = first + new if new.shape[2] == 1 else torch.cat([first + new[:, :, :1], new[:, :, 1:]], dim=2)
        if sigma:
            new = new + sigma * (1.0 - gate * gate).clamp(min=0.0).sqrt().detach() * self._normal(new)
        if new.shape[2] == 1:
            return new
        held: Tensor = Recurrence.apply((gate * kept).expand_as(new).flatten(0, 1), new.flatten(0, 1))
        return held.unflatten(0, new.shape[:2])

    def _scores(self, pulse: Tensor, u: Tensor, cells: list[Tensor | float]) -> tuple[Tensor, Tensor]:
        """Pulses into the second array `[B, H, T, m]`, the longest of a token 1, and the share that 1 stands for
        `[B, H, T, 1]`.

        Shares are divided before the pulses, whose gradients then leave alone what all scores of a token have in
        common, as the machine does. Divided behind the counters, the rounding of each would be a gradient of that,
        which the charge of resting cells, common to all, makes fifty times too large.
        """
        hardware, noise = self.hardware, self.hardware.noise
        charge = (_charge(u, cells) @ pulse[..., None])[..., 0]  # [B, H, T, m]
        charge = charge / (hardware.array.saturation_qk * self.score_full_scale[:, None, None])
        if noise.column_gain or noise.column_offset:
            charge = with_columns(charge, *self._columns_qk(charge))
        if noise.read_qk:
            charge = charge + noise.read_qk * self._normal(charge)
        logits = self.score_gain[:, None, None] * adc(charge, hardware.score_adc)
        shares = logits.softmax(dim=-1)
        longest = shares.detach().amax(dim=-1, keepdim=True)
        return dac(shares / longest, hardware.probability_dac), longest

    def _sums(self, widths: Tensor, u: Tensor, cells: list[Tensor | float]) -> Tensor:
        """Digital sum of the counters `[B, H, T, D]`, in full scales."""
        hardware, noise = self.hardware, self.hardware.noise
        rows = min(hardware.array.rows, self.n_slots)
        tiles = (widths[..., None] * _charge(u, cells)).unflatten(3, (-1, rows)).sum(dim=4)  # [B, H, T, J, D]
        tiles = tiles / (hardware.array.saturation_av * self.readout_full_scale[:, None, None, None])
        if noise.column_gain or noise.column_offset:
            tiles = with_columns(tiles, *self._columns_av(tiles))
        if noise.read_av:
            tiles = tiles + noise.read_av * self._normal(tiles)
        return adc(tiles, hardware.readout).sum(dim=3)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)

    @property
    def chip(self) -> Chip:
        """Of this layer."""
        return Chip(seed=self.chip_seed, layer=self.layer)

    def _coefficients(self, array: ArrayId, like: Tensor) -> list[Tensor | float]:
        """Of the transfer curve of each cell about the voltage that it leaks to, lowest power first, `[H, 1, m, D]` or
        a number."""
        noise, slots = self.hardware.noise, torch.arange(self.n_slots, device=like.device)
        where = (array, like.shape[1], slots, like.shape[3])
        gain = noise.mismatch_gain * self.chip.cell_gain(*where)[:, None] if noise.mismatch_gain else None
        offset = noise.mismatch_offset_v * self.chip.cell_offset(*where)[:, None] if noise.mismatch_offset_v else None
        return cell_coefficients(leaking_cell(self.hardware), gain, offset)

    def _columns_qk(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and offset of the columns of `[B, H, T, m]`."""
        slots, noise = torch.arange(self.n_slots, device=like.device), self.hardware.noise
        gain, offset = (
            of(like.shape[1], slots)[:, None] for of in (self.chip.column_gain_qk, self.chip.column_offset_qk)
        )
        return noise.column_gain * gain, noise.column_offset * offset

    def _columns_av(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of those of `[B, H, T, J, D]`."""
        tiles, noise = torch.arange(like.shape[3], device=like.device), self.hardware.noise
        of = (like.shape[1], tiles, like.shape[4])
        gain, offset = self.chip.column_gain_av(*of)[:, None], self.chip.column_offset_av(*of)[:, None]
        return noise.column_gain * gain, noise.column_offset * offset


def _charge(u: Tensor, coefficients: list[Tensor | float]) -> Tensor:
    """Charge per unit pulse of cells at `u` `[B, H, T, m, D]`, in signal units."""
    value: Tensor | float = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = value * u + c
    return value  # type: ignore[return-value]  # a cell has at least two coefficients


def _check(hardware: Hardware, gate: Converter, n_slots: int) -> None:
    """Raise :class:`ConfigError` for what slots have no circuit for, or is not emulated."""
    rows = hardware.array.rows
    for name, given, refused, why, remedy in (
        (
            "activation",
            hardware.activation,
            hardware.activation != "softmax",
            "between the two arrays of slots stands a softmax",
            "use aimc.presets.with_softmax(hardware)",
        ),
        (
            "storage_dac.spacing",
            hardware.storage_dac.spacing,
            hardware.storage_dac.spacing != "uniform",
            "a slot holds a mixture of many written voltages, so levels at chosen voltages do not make it linear",
            "use 'uniform'",
        ),
        (
            "array.rows",
            rows,
            bool(n_slots > rows and n_slots % rows),
            f"{n_slots} slots are no whole number of sub-tiles",
            "choose array.rows that divides num_slots",
        ),
        (
            "features, protection, leakage.compensate, noise.tau_spread",
            "on",
            hardware.features.is_on
            or hardware.protection.is_on
            or hardware.leakage.compensate
            or hardware.noise.tau_spread > 0,
            "they belong to arrays that hold single tokens",
            "leave them at their defaults",
        ),
        (
            "cell.gradient",
            hardware.cell.gradient,
            hardware.cell.gradient != "exact",
            "the surrogate slope is of cells that are written once, and a slot's are differentiated as they are",
            "use 'exact'",
        ),
        (
            "noise_gradient",
            hardware.noise_gradient,
            hardware.noise_gradient != "exact",
            "a slot's noise of one token is what the next ones find",
            "use 'exact'",
        ),
        (
            "gate.v_min",
            gate.v_min,
            gate.v_min != 0 or gate.v_max <= 0,
            "a gate is open for a pulse between none and the longest",
            "set gate.v_min to 0 and gate.v_max above it",
        ),
    ):
        if refused:
            raise ConfigError(f"{name}={given!r}: {why}; {remedy}")
