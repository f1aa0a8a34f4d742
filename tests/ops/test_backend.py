import logging
from dataclasses import replace

import pytest
import torch

from aimc import presets
from aimc.hardware import Hardware, Protection
from aimc.ops import attention, compiled
from aimc.ops.attention import choose_backend, gain_cell_attention
from aimc.ops.scaling import Affine, Scaling


def qkv(dtype=torch.float32, D=16):
    g = torch.Generator().manual_seed(0)
    return [torch.rand(1, 2, 9, D, generator=g).to(dtype) for _ in range(3)]


def test_auto_is_blocked_on_a_cpu_and_says_so_once(caplog):
    attention._say.cache_clear()
    with caplog.at_level(logging.INFO, logger="aimc.ops.attention"):
        for _ in range(3):
            auto = gain_cell_attention(*qkv(), presets.gain_cell_cmos())
    assert [r.getMessage() for r in caplog.records] == [
        "gain-cell attention: backend 'auto' uses 'blocked' (on a CPU it is the fastest exact implementation)"
    ]
    assert torch.equal(auto, gain_cell_attention(*qkv(), replace(presets.gain_cell_cmos(), backend="blocked")))


def test_auto_keeps_the_matrices_of_short_texts_that_are_trained_on(monkeypatch):
    monkeypatch.setattr(compiled, "kernels", lambda: None)
    hardware, wanted = Hardware(), torch.zeros(1, 1, 1, 1, requires_grad=True)
    assert choose_backend(wanted.expand(16, 4, 256, 32), hardware) == "eager"
    assert choose_backend(wanted.expand(16, 4, 512, 32), hardware) == "blocked"
    assert choose_backend(wanted.expand(16, 4, 256, 32), presets.with_softmax(hardware)) == "blocked"
    with torch.no_grad():
        assert choose_backend(wanted.expand(16, 4, 256, 32), hardware) == "blocked"


@pytest.mark.skipif(compiled.kernels() is None, reason="numba is not installed")
@pytest.mark.parametrize("changed", [presets.gain_cell_normalised, presets.gain_cell_cmos, presets.ideal])
def test_auto_takes_what_is_compiled_for_all_but_the_shortest(changed):
    wanted = torch.zeros(1, 1, 1, 1, requires_grad=True)
    assert choose_backend(wanted.expand(16, 4, 256, 32), changed()) == "blocked"
    assert choose_backend(wanted.expand(2, 4, 64, 32), changed()) == "eager"
    protected = replace(changed(), protection=Protection(n_sink=1))  # goes run by run
    assert choose_backend(wanted.expand(16, 4, 256, 32), protected) == "eager"


def test_details_come_from_the_eager_operator_whatever_the_backend():
    hardware = presets.gain_cell_cmos()
    _, details = gain_cell_attention(*qkv(), replace(hardware, backend="blocked"), details=True)
    assert torch.equal(details.S, gain_cell_attention(*qkv(), replace(hardware, backend="eager"), details=True)[1].S)


def test_triton_by_name_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"hardware\.backend='triton': .*(CUDA|not installed).*blocked"):
        gain_cell_attention(*qkv(), replace(presets.gain_cell_cmos(), backend="triton"))


@pytest.mark.parametrize(
    ("change", "named"), [({"dtype": torch.float64}, "float64"), ({"D": 8}, "head sizes"), ({"D": 256}, "head sizes")]
)
def test_what_the_triton_kernels_cannot_do_is_named(change, named, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=rf"hardware\.backend='triton': .*{named}.*blocked"):
        gain_cell_attention(*qkv(**change), replace(presets.gain_cell_cmos(), backend="triton"))


@pytest.mark.parametrize("backend", ["eager", "blocked"])
@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_numbers_that_are_not_finite_are_refused_in_debug_mode(backend, which):
    tensors = dict(zip(("query", "key", "value"), qkv(), strict=True))
    tensors[which][0, 1, 2, 3] = float("nan")
    hardware = replace(presets.gain_cell_cmos(), backend=backend)
    with (
        torch.autograd.set_detect_anomaly(True),
        pytest.raises(ValueError, match=f"{which} has 1 of 288 numbers that are not finite"),
    ):
        gain_cell_attention(*tensors.values(), hardware)


@pytest.mark.parametrize("backend", ["eager", "blocked"])
def test_scalers_that_do_not_fit(backend):
    scaling = Scaling(None, Affine(torch.ones(3), torch.zeros(3)), None)
    with pytest.raises(ValueError, match=r"scaling\.key.*\(3,\).*shape \(2,\)"):
        gain_cell_attention(*qkv(), replace(presets.gain_cell_cmos(), backend=backend), scaling=scaling)
