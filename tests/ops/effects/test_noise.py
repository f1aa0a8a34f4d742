import dataclasses

import pytest
import torch

from aimc.ops.effects.noise import ArrayId, Chip, Stream, draw_seed, normal, read_noise_av, read_noise_qk, write_noise

N = 1000
FROZEN = [1.091146241488625, -1.252549172719303, 0.2878089706305016]


def field(seed=7, stream=Stream.READ, dtype=torch.float32):
    return normal(seed, stream, 3, torch.arange(N)[:, None], torch.arange(N), dtype=dtype)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].abs().item()


def test_moments_are_those_of_a_normal_distribution():
    x = field().double()
    se = 1 / N  # of the mean of N² draws
    assert torch.isfinite(x).all() and x.abs().max() > 4.0
    assert abs(x.mean()) < 4 * se
    assert abs(x.std() - 1) < 4 * se / 2**0.5
    assert abs((x**3).mean()) < 4 * se * 15**0.5
    assert abs((x**4).mean() - 3) < 4 * se * 96**0.5


def test_cumulative_distribution():
    x = field().double().flatten().sort().values
    at = torch.linspace(-4, 4, 33, dtype=torch.float64)
    empirical = torch.searchsorted(x, at).double() / N**2
    assert (empirical - torch.special.ndtr(at)).abs().max() < 2.0 / N


def test_neighbouring_coordinates_streams_and_seeds_are_independent():
    x = field()
    limit = 4.5 / N
    for lag in (1, 2, 64):
        assert correlation(x[lag:], x[:-lag]) < limit and correlation(x[:, lag:], x[:, :-lag]) < limit
        assert correlation(x[:, lag:] ** 2, x[:, :-lag] ** 2) < limit
    assert correlation(x, x.T) < limit
    for other in (field(seed=8), field(seed=7 + 2**32), field(stream=Stream.WRITE)):
        assert correlation(x, other) < limit and correlation(x**2, other**2) < limit
    assert (x.mean(0).std() * N**0.5 - 1).abs() < 0.1 and (x.mean(1).std() * N**0.5 - 1).abs() < 0.1


def test_a_draw_depends_only_on_its_coordinates():
    whole = field()
    rows, columns = torch.arange(130, 257), torch.tensor([999, 3, 64])
    assert torch.equal(normal(7, Stream.READ, 3, rows[:, None], columns), whole[rows][:, columns])
    assert torch.equal(
        normal(torch.tensor(7), Stream.READ, torch.tensor(3), torch.arange(N)[:, None], torch.arange(N)), whole
    )
    torch.testing.assert_close(field(dtype=torch.float64).float(), whole, atol=1e-5, rtol=1e-5)


def test_numbers_are_frozen():
    """A change here changes every chip and every published result: raise the version instead."""
    values = normal(2**40 + 5, Stream.CELL_GAIN, torch.arange(3), dtype=torch.float64).tolist()
    assert values == pytest.approx(FROZEN, abs=1e-12)


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
    assert write.shape == (2, 3, 40, 8) and torch.equal(
        write_noise(5, 0, ArrayId.QK, 2, 3, t[7:9], 8, dtype), write[:, :, 7:9]
    )
    read = read_noise_qk(5, 0, 2, 3, t, t, dtype)
    assert read.shape == (2, 3, 40, 40) and torch.equal(
        read_noise_qk(5, 0, 2, 3, t[9:], t[3:5], dtype), read[:, :, 9:, 3:5]
    )
    tile = read_noise_av(5, 0, 2, 3, t, 1, 8, dtype)
    assert torch.equal(read_noise_av(5, 0, 2, 3, t, torch.tensor([2, 1]), 8, dtype)[1], tile)
    assert tile.shape == (2, 3, 40, 8) and correlation(tile, read_noise_av(5, 0, 2, 3, t, 2, 8, dtype)) < 0.1


def test_drawn_seed_follows_the_generator():
    a, b = (draw_seed(torch.Generator().manual_seed(3), torch.device("cpu")) for _ in range(2))
    assert a == b and a.shape == () and a >= 0
    assert draw_seed(None, torch.device("cpu")) != draw_seed(None, torch.device("cpu"))
