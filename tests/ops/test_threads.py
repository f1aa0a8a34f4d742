import os
import threading

import pytest
import torch

from aimc import presets
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.noise import Chip
from aimc.ops.threads import side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_without_gradients(two_threads):
    here = threading.get_ident()

    def compute(i):
        assert threading.get_ident() != here and torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        return i, torch.is_inference_mode_enabled()

    assert side_by_side(compute, range(5)) == [(i, False) for i in range(5)]
    with torch.inference_mode():
        assert side_by_side(compute, range(3)) == [(i, True) for i in range(3)]
    assert torch.get_num_threads() == 2


def test_an_error_comes_out_and_the_threads_are_given_back(two_threads):
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda i: 1 // i, range(3))
    assert torch.get_num_threads() == 2


def results(batch=3, heads=4, kv_heads=2):
    g = torch.Generator().manual_seed(0)
    hardware = presets.published()
    hardware.noise, hardware.backend = presets.typical(), "blocked"
    x = [torch.rand(batch, n, 150, 16, generator=g).requires_grad_() for n in (heads, kv_heads, kv_heads)]
    out = gain_cell_attention(*x, hardware, chip=Chip(seed=1), generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(out.square().sum(), x)
    with torch.inference_mode():
        again = gain_cell_attention(*x, hardware, chip=Chip(seed=1), generator=torch.Generator().manual_seed(1))
    return [out, again, *grads]


def test_threads_change_no_number(two_threads):
    by_two = results()
    torch.set_num_threads(1)
    for one, other in zip(results(), by_two, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def _in_child(queue):
    torch.set_num_threads(2)
    queue.put(side_by_side(lambda i: i, range(3)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_threads_of_its_own(two_threads):
    import multiprocessing

    side_by_side(lambda i: i, range(3))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == [0, 1, 2]
    child.join()
