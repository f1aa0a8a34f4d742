import torch

from aimc.hardware import Array, Hardware, Noise
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects import noise
from aimc.ops.effects.noise import Chip
from aimc.ops.frozen import KEPT, Kept


def test_a_table_is_drawn_once_and_another_chips_least_recently_used_goes_first():
    tables, drawn = Kept(most_bytes=3 * 40), []

    def get(key):
        def draw():
            drawn.append(key)
            return [torch.full((10,), float(key)), None, 1.0]

        return tables.get(key, draw, chip=key)[0]

    for key in (1, 2, 3, 1, 4):  # 4 takes the place of 2
        assert get(key).eq(key).all()
    assert drawn == [1, 2, 3, 4] and tables.n_bytes == 120
    get(1), get(2)
    assert drawn == [1, 2, 3, 4, 2]
    tables.clear()
    assert tables.n_bytes == 0 and get(1).eq(1).all() and drawn[-1] == 1


def test_layers_of_one_chip_that_have_no_room_together_do_not_throw_each_other_out():
    tables, drawn = Kept(most_bytes=2 * 40), []

    def read(chip):
        for layer in (1, 2, 3):
            tables.get((chip, layer), lambda layer=layer: drawn.append(layer) or [torch.zeros(10)], chip=chip)

    read(0), read(0), read(0)
    assert drawn == [1, 2, 3, 3, 3] and tables.n_bytes == 80
    read(1), read(1)
    assert drawn[5:] == [1, 2, 3, 3] and tables.n_bytes == 80
    other = lambda: tables.get("another model", lambda: drawn.append("other") or [torch.zeros(20)], chip=1)  # noqa: E731
    other(), other(), other()
    assert drawn[9:] == ["other", "other"], "kept once nobody has asked for the others in between"


def test_what_is_larger_than_all_is_not_kept():
    tables = Kept(most_bytes=10)
    assert tables.get("large", lambda: [torch.ones(10)])[0].sum() == 10
    assert tables.n_bytes == 0


def test_a_table_drawn_in_inference_mode_may_be_trained_with():
    tables = Kept()
    with torch.inference_mode():
        (table,) = tables.get(1, lambda: [torch.ones(3)])
    weight = torch.ones(3, requires_grad=True)
    (weight * table).sum().backward()
    assert weight.grad is not None


def test_a_chip_is_drawn_once_for_all_calls(monkeypatch):
    hardware = Hardware(noise=Noise(mismatch_gain=0.1, mismatch_offset_v=0.01, column_gain=0.1, column_offset=0.1))
    hardware.array = Array(window=16, rows=4)
    parts = [torch.randn(1, 2, 24, 4) for _ in range(3)]
    drawn, normal = [], noise.normal
    monkeypatch.setattr(noise, "normal", lambda *at, **kw: drawn.append(at[1]) or normal(*at, **kw))
    KEPT.clear()
    for backend in ("eager", "blocked", "eager"):
        hardware.backend = backend
        gain_cell_attention(*parts, hardware, chip=Chip(seed=5))
    # Gain and offset of the cells and of the columns, in two arrays, once.
    assert len(drawn) == 8
    gain_cell_attention(*parts, hardware, chip=Chip(seed=6))
    assert len(drawn) == 16


def test_spread_of_retention_needs_no_chip_where_nothing_is_forgotten():
    parts = [torch.randn(1, 2, 8, 4) for _ in range(3)]
    hardware = Hardware(noise=Noise(tau_spread=0.1), array=Array(window=16, rows=4))
    assert gain_cell_attention(*parts, hardware).shape == (1, 2, 8, 4)
