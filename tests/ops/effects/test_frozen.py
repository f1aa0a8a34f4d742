import torch

from aimc.ops.effects.frozen import Tables


def test_a_table_is_drawn_once_and_the_least_recently_used_goes_first():
    tables, drawn = Tables(most_bytes=3 * 40), []

    def get(key):
        def draw():
            drawn.append(key)
            return torch.full((10,), float(key))

        return tables.get(key, draw)

    for key in (1, 2, 3, 1, 4):  # 4 takes the place of 2
        assert get(key).eq(key).all()
    assert drawn == [1, 2, 3, 4] and tables.n_bytes == 120
    get(1), get(2)
    assert drawn == [1, 2, 3, 4, 2]
    tables.clear()
    assert tables.n_bytes == 0 and get(1).eq(1).all() and drawn[-1] == 1


def test_what_is_larger_than_all_is_not_kept():
    tables = Tables(most_bytes=10)
    assert tables.get("large", lambda: torch.ones(10)).sum() == 10
    assert tables.n_bytes == 0


def test_a_table_drawn_in_inference_mode_may_be_trained_with():
    tables = Tables()
    with torch.inference_mode():
        table = tables.get(1, lambda: torch.ones(3))
    weight = torch.ones(3, requires_grad=True)
    (weight * table).sum().backward()
    assert weight.grad is not None
