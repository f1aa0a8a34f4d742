import dataclasses

import pytest
import torch

from aimc.ops.effects.noise import ArrayId, Chip, at_read, draw_seed, write_noise
from aimc.ops.effects.random import normal


def read_qk(rows, keys):
    return normal(5, *at_read(0, ArrayId.QK, 2, 3, rows), keys)


def read_av(rows, tiles):
    return normal(5, *at_read(0, ArrayId.AV, 2, 3, rows), tiles, torch.arange(8))


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].abs().item()


def test_chip_is_one_draw_per_seed_layer_array_and_head():
    slots, chip = torch.arange(64), Chip(seed=1)
    gain = chip.cell_gain(ArrayId.QK, 2, slots, 32)
    assert gain.shape == (2, 64, 32)
    assert torch.equal(gain, Chip(seed=1).cell_gain(ArrayId.QK, 2, slots, 32))
    assert torch.equal(gain[:, 10:20], chip.cell_gain(ArrayId.QK, 2, slots[10:20], 32))
    others = [
        gain.flip(0),
        chip.cell_gain(ArrayId.AV, 2, slots, 32),
        chip.cell_offset(ArrayId.QK, 2, slots, 32),
        Chip(seed=2).cell_gain(ArrayId.QK, 2, slots, 32),
        dataclasses.replace(chip, layer=1).cell_gain(ArrayId.QK, 2, slots, 32),
    ]
    for other in others:
        assert correlation(gain, other) < 0.08


def test_column_draws_have_one_number_per_column():
    chip = Chip(seed=1)
    assert chip.column_gain_qk(2, torch.arange(64)).shape == (2, 64)
    assert chip.column_offset_av(2, torch.arange(4), 32).shape == (2, 4, 32)
    assert correlation(chip.column_gain_qk(1, torch.arange(2000)), chip.column_offset_qk(1, torch.arange(2000))) < 0.1
    assert (
        correlation(chip.column_gain_av(1, torch.arange(99), 32), chip.cell_gain(ArrayId.AV, 1, torch.arange(99), 32))
        < 0.08
    )


@pytest.mark.parametrize("kwargs", [{"seed": -1}, {"seed": 2**63}, {"seed": 0, "layer": -1}])
def test_chip_refuses_numbers_that_cannot_be_hashed(kwargs):
    with pytest.raises(ValueError, match="Chip"):
        Chip(**kwargs)


def test_noise_of_a_block_is_a_block_of_the_noise():
    t, dtype = torch.arange(40), torch.float32
    write = write_noise(5, 0, ArrayId.QK, 2, 3, t, 8, dtype)
    assert write.shape == (2, 3, 40, 8)
    assert torch.equal(write_noise(5, 0, ArrayId.QK, 2, 3, t[7:9], 8, dtype), write[:, :, 7:9])
    read = read_qk(t, t)
    assert read.shape == (2, 3, 40, 40)
    torch.testing.assert_close(read_qk(t[9:], t[3:5]), read[:, :, 9:, 3:5])
    tile = read_av(t, 1)
    torch.testing.assert_close(read_av(t, torch.tensor([2, 1])[:, None, None, None, None])[1], tile)
    assert tile.shape == (2, 3, 40, 8) and correlation(tile, read_av(t, 2)) < 0.1


def test_drawn_seed_follows_the_generator():
    a, b = (draw_seed(torch.Generator().manual_seed(3), torch.device("cpu")) for _ in range(2))
    assert a == b and a.shape == () and a >= 0
    assert draw_seed(None, torch.device("cpu")) != draw_seed(None, torch.device("cpu"))
