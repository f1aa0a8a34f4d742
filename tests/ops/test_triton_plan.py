"""A kernel that is launched again is the one that Triton itself would have chosen for the arguments.

Triton chooses as on a GPU, by its own look at all arguments; only that nothing is compiled nor launched, so that no GPU
is needed.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, which is inside the first call

from dataclasses import replace

from aimc import gain_cell_attention, presets
from aimc.hardware import Array, Noise, Protection
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Affine, Scaling
from aimc.ops.triton import plan as all_plans
from aimc.ops.triton.plan import Plan
from benchmarks.host import Nowhere

pytest.importorskip("triton", reason="the triton backend needs the package triton")
B, H, H_KV, T, D = 2, 4, 2, 48, 24


class Chosen:
    """What stands for a compiled kernel. Launched again, it asks Triton whom it would have chosen."""

    function = packed_metadata = None

    def __init__(self, kernel):
        self.kernel = kernel

    def launch_metadata(self, *_):
        return None

    def run(self, *_):
        return None

    def __getitem__(self, grid):
        def launched_again(*args):
            AGAIN.append(self)
            chosen = self.kernel[grid](*args, **HOW[-1])
            assert chosen is self, f"{self.kernel.__name__}: another was compiled for these arguments"

        return launched_again


HOW: list[dict[str, int]] = []
"""Of each launch."""
AGAIN: list[Chosen] = []
"""Launches of what was known."""


@pytest.fixture
def plans(monkeypatch):
    """That of each launch, in order."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    if not hasattr(JITFunction, "_do_compile"):
        pytest.skip("this version of Triton cannot be kept from compiling")

    def chosen(kernel, key, *_):
        kernel_cache, *_ = kernel.device_caches[0]
        kernel_cache[key] = Chosen(kernel)
        return kernel_cache[key]

    jitted, used, launch = {}, [], Plan.launch

    def watched(self, kernel, grid, *args, variant=None, **how):
        used.append(self)
        HOW.append(how)
        name = kernel.__name__
        if name not in jitted:  # reads and cuts up the kernel's source
            jitted[name] = JITFunction(kernel.fn)
        as_on_a_gpu = jitted[name]
        launch(self, as_on_a_gpu, grid, *args, variant=variant, **how)

    monkeypatch.setenv("TRITON_INTERPRET", "1")  # tensors of the CPU are taken
    monkeypatch.setattr(JITFunction, "_do_compile", chosen)
    before = dict(vars(driver))
    driver.set_active(Nowhere())
    monkeypatch.setattr(Plan, "launch", watched)
    monkeypatch.setattr(all_plans, "_plans", {})
    AGAIN.clear()
    yield used
    vars(driver).clear()
    vars(driver).update(before)


def off(x: torch.Tensor) -> torch.Tensor:
    """The same numbers one further in memory than an address that is a multiple of 16."""
    moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view_as(x).copy_(x.detach())
    return moved.requires_grad_(x.requires_grad)


def affine(heads: int, place) -> Affine:
    return Affine(*(place(x).requires_grad_() for x in (torch.ones(heads), torch.zeros(heads))))


def pass_through(hardware, place=torch.clone, *, layer=1, T=T, B=B, dtype=torch.bfloat16, chip=3, **of):
    """Forward and backward with everything given at a place."""
    q, k, v = (place(torch.rand(B, h, T, D).to(dtype)).requires_grad_() for h in (H, H_KV, H_KV))
    scaling = Scaling(affine(H, place), affine(H_KV, place), affine(H_KV, place))
    if of.get("score"):
        scaling = scaling._replace(score=place(torch.ones(H)).requires_grad_())
    if of.get("threshold"):
        scaling = scaling._replace(pulse_threshold=place(torch.zeros(H)).requires_grad_())
    if hardware.features.normalises:
        norms = {name: place(torch.ones(B, h, T)) for name, h in (("query", H), ("key", H_KV), ("value", H_KV))}
        scaling = scaling._replace(**{f"{name}_norm": x for name, x in norms.items()})
    if hardware.array.full_scales == "head":
        names = ("full_scale_qk", "full_scale_av", "full_scale_of_sum")
        scaling = scaling._replace(**{name: place(torch.ones(H)) for name in names})
    if of.get("plain"):
        scaling = None
    if of.get("by_token"):
        q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v))
    padding = place(torch.zeros(B, T, dtype=torch.bool)) if of.get("padding") else None
    call = {"scaling": scaling, "key_padding": padding, "chip": Chip(seed=chip, layer=layer)}
    call["generator"] = torch.Generator().manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, off if of.get("moved") else lambda x: x):
        out = gain_cell_attention(q, k, v, replace(hardware, backend="triton"), **call)
    out.backward(place(torch.ones(B, T, H, D, dtype=out.dtype)).transpose(1, 2))  # as it is laid out
    with torch.no_grad():
        gain_cell_attention(q, k, v, replace(hardware, backend="triton"), **call)


def published():
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=32, rows=16, saturation_qk=10.0, saturation_av=6.0)
    return hardware


def softmax():
    hardware = presets.for_pretrained(presets.gain_cell_cmos(), protection=Protection(n_sink=2, n_recent=16))
    hardware.leakage = published().leakage
    hardware.array = replace(hardware.array, window=32, rows=16)
    return hardware


MACHINES = {
    "published": published,
    "noisy": lambda: replace(published(), noise=presets.typical()),
    "read noise alone": lambda: replace(published(), noise=Noise(read_qk=0.02)),
    "cells that leak apart": lambda: replace(published(), noise=Noise(tau_spread=0.1)),
    "normalised": lambda: replace(presets.gain_cell_normalised(), array=published().array),
    "normalised, full scales of heads": lambda: replace(
        presets.gain_cell_normalised(), array=replace(published().array, full_scales="head")
    ),
    "protected": lambda: replace(published(), protection=Protection(n_sink=2, n_recent=16)),
    "softmax": softmax,
    "equal charge": lambda: replace(published(), storage_dac=replace(published().storage_dac, spacing="equal_charge")),
    "gradients of the clean network": lambda: replace(published(), noise=presets.typical(), noise_gradient="clean"),
    "ideal": lambda: replace(published(), leakage=replace(published().leakage, tau_s=None)),
}
WAYS = (
    {},
    {"place": off},
    {"layer": 16},
    {"layer": 5},
    {"layer": 5, "place": off},
    {"T": 1},
    {"T": 33},
    {"B": 1},
    {"dtype": torch.float32},
    {"dtype": torch.float16, "place": off},
    {"padding": True, "place": off},
    {"padding": True},
    {"plain": True},
    {"by_token": True},
    {"chip": 4},
    {"moved": True},
)


@pytest.mark.parametrize("name", MACHINES)
def test_kernels_launched_again_are_those_that_triton_would_choose(plans, name):
    hardware = MACHINES[name]()
    extra = ({"score": True},) if hardware.has_softmax else ({"threshold": True},)
    for way in (*WAYS, *extra):
        if way.get("threshold"):
            hardware = replace(hardware, threshold=True)
        pass_through(hardware, **way)
    assert len(AGAIN) > len(plans) / 3
    before, finer = len(plans), replace(hardware, readout=replace(hardware.readout, n_levels=64))
    pass_through(finer)
    assert {plan.hardware.readout.n_levels for plan in plans[before:]} == {64}
    before = len(all_plans._plans)
    pass_through(finer, layer=7)  # as layer 1 to 15 but for the first
    known = len(all_plans._plans)
    pass_through(finer, layer=9)
    assert len(all_plans._plans) == known > before
