"""Everything that is drawn by chance in one call, as arrays for the single-cell loop."""

from __future__ import annotations

import torch

from aimc.hardware import Hardware
from aimc.ops.effects.noise import ArrayId, Chip, at_read, draw_seed, write_noise
from aimc.ops.effects.random import normal
from tests.ops.reference import Draws


def draws_of(hardware: Hardware, chip: Chip, seed: int, *, B: int, H: int, H_kv: int, T: int, D: int) -> Draws:
    """What the operator draws on `chip` with a generator that was seeded with `seed`."""
    noise, array, dtype = hardware.noise, hardware.array, torch.float64
    drawn = draw_seed(torch.Generator().manual_seed(seed), torch.device("cpu"))
    slots, tiles, t = torch.arange(array.window), torch.arange(array.n_tiles), torch.arange(T)
    ids = {"qk": ArrayId.QK, "av": ArrayId.AV}
    cells = {
        "mismatch_gain": (noise.mismatch_gain, chip.cell_gain),
        "mismatch_offset_v": (noise.mismatch_offset_v, chip.cell_offset),
        "tau_spread": (noise.tau_spread, chip.cell_retention),
    }
    frozen = {
        name: {n: sigma * draw(i, H_kv, slots, D, dtype) for n, i in ids.items()}
        for name, (sigma, draw) in cells.items()
    }
    frozen["column_gain"] = {
        "qk": noise.column_gain * chip.column_gain_qk(H_kv, slots, dtype),
        "av": noise.column_gain * chip.column_gain_av(H_kv, tiles, D + 1, dtype),  # the normaliser is the last
    }
    frozen["column_offset"] = {
        "qk": noise.column_offset * chip.column_offset_qk(H_kv, slots, dtype),
        "av": noise.column_offset * chip.column_offset_av(H_kv, tiles, D + 1, dtype),
    }
    read_qk = normal(drawn, *at_read(chip.layer, ids["qk"], B, H, t), t, dtype=dtype)
    at_tiles = *at_read(chip.layer, ids["av"], B, H, t), tiles[:, None, None, None, None], torch.arange(D + 1)
    read_av = normal(drawn, *at_tiles, dtype=dtype)
    return Draws(
        frozen=frozen,
        written={n: noise.write_v * write_noise(drawn, chip.layer, i, B, H_kv, t, D, dtype) for n, i in ids.items()},
        read={
            "read_qk": noise.read_qk * read_qk,
            "read_av": noise.read_av * read_av.movedim(0, -2),
        },
    )
