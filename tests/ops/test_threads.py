import os
import signal
import threading

import pytest
import torch

from aimc import presets
from aimc.ops import threads
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.noise import Chip
from aimc.ops.threads import side_by_side


@pytest.fixture(params=["openmp", "pool"])
def kind(request, monkeypatch):
    """PyTorch's own threads, and those that do where it has none of OpenMP."""
    if request.param == "pool":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("PyTorch was not built with OpenMP here")
    return request.param


def test_results_come_in_order_from_threads_without_gradients(two_threads, kind):
    def compute(i):
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        return i, torch.is_inference_mode_enabled()

    assert side_by_side(compute, range(5)) == [(i, False) for i in range(5)]
    with torch.inference_mode():
        assert side_by_side(compute, range(3)) == [(i, True) for i in range(3)]
    assert torch.get_num_threads() == 2


def test_two_are_computed_at_once(two_threads, kind):
    both_are_there = threading.Barrier(2, timeout=20)
    who = side_by_side(lambda _: (both_are_there.wait(), threading.get_ident())[1], range(2))
    assert len(set(who)) == 2


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_comes_out_and_the_threads_are_given_back(error, two_threads, kind):
    def compute(i):
        if i == 0:
            raise error

    with pytest.raises(error):
        side_by_side(compute, range(3))
    assert torch.get_num_threads() == 2
    assert side_by_side(lambda i: i, range(3)) == [0, 1, 2]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted by /proc")
@pytest.mark.parametrize("kind", ["openmp"], indirect=True)
def test_no_thread_of_pytorch_is_made_again(kind):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        x, found = torch.rand(2000, 500), []
        for _ in range(4):
            x.exp()
            side_by_side(lambda i: i, range(2))
            found.append(set(os.listdir("/proc/self/task")))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[-1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what ctypes prints
@pytest.mark.parametrize("kind", ["openmp"], indirect=True)
def test_what_a_signal_raises_comes_out(two_threads, kind):
    """Wherever it meets the main thread: in a part, or on the way into one."""

    def stop(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, stop)
    try:
        for microseconds in range(50, 1050, 50):
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, microseconds * 1e-6)
                while True:
                    side_by_side(lambda i: i, range(4))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    torch.set_num_threads(2)  # which the signal may have kept from being given back
    assert side_by_side(lambda i: i, range(3)) == [0, 1, 2]


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


def test_threads_change_no_number(two_threads, kind):
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
