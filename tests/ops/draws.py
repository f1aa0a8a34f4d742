"""Everything that is drawn by chance in one call, as arrays for the single-cell loop."""

from __future__ import annotations

import torch

from aimc.hardware import Hardware
from aimc.ops.effects.noise import ArrayId, Chip, draw_seed, read_noise_av, read_noise_qk, write_noise
from tests.ops.reference import Draws


def draws_of(hardware: Hardware, chip: Chip, seed: int, *, B: int, H: int, H_kv: int, T: int, D: int) -> Draws:
    """What the operator draws on `chip` with a generator that was seeded with `seed`."""
    noise, array, dtype = hardware.noise, hardware.array, torch.float64
    drawn = draw_seed(torch.Generator().manual_seed(seed), torch.device("cpu"))
    slots, tiles, t = torch.arange(array.window), torch.arange(array.n_tiles), torch.arange(T)
    ids = {"qk": ArrayId.QK, "av": ArrayId.AV}
    return Draws(
        gain={n: noise.mismatch_gain * chip.cell_gain(i, H_kv, slots, D, dtype) for n, i in ids.items()},
        offset_v={n: noise.mismatch_offset_v * chip.cell_offset(i, H_kv, slots, D, dtype) for n, i in ids.items()},
        log_tau={n: noise.tau_spread * chip.cell_retention(i, H_kv, slots, D, dtype) for n, i in ids.items()},
        write_v={n: noise.write_v * write_noise(drawn, chip.layer, i, B, H_kv, t, D, dtype) for n, i in ids.items()},
        column_gain_qk=noise.column_gain * chip.column_gain_qk(H_kv, slots, dtype),
        column_offset_qk=noise.column_offset * chip.column_offset_qk(H_kv, slots, dtype),
        column_gain_av=noise.column_gain * chip.column_gain_av(H_kv, tiles, D, dtype),
        column_offset_av=noise.column_offset * chip.column_offset_av(H_kv, tiles, D, dtype),
        read_qk=noise.read_qk * read_noise_qk(drawn, chip.layer, B, H, t, t, dtype),
        read_av=noise.read_av
        * torch.stack([read_noise_av(drawn, chip.layer, B, H, t, j, D, dtype) for j in range(array.n_tiles)], dim=-2),
    )
