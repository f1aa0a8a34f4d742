"""Classes of operators: where an operator runs decides, then its name; own times from nested events."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import nn
from torch.autograd import DeviceType

from aimc.evaluate.characterise.operators import (
    ATTENTION,
    CONVOLUTION,
    ELEMENTWISE,
    EMBEDDING,
    HOST,
    MIXER,
    NORMALISATION,
    OTHER,
    PRODUCT,
    SCAN,
    UNCLASSIFIED,
    operator_class,
)
from aimc.evaluate.characterise.profiling import CallProfile, read
from aimc.evaluate.characterise.scopes import FORWARD, PREFIX, part_of


@pytest.mark.parametrize(
    ("name", "part", "inherited", "expected"),
    [
        ("aten::addmm", None, None, PRODUCT),
        ("aten::bmm", ATTENTION, None, ATTENTION),
        ("aten::addmm", PRODUCT, None, PRODUCT),
        ("aten::conv1d", MIXER, None, CONVOLUTION),
        ("aten::_conv_depthwise2d", SCAN, None, CONVOLUTION),
        ("aten::fft_rfft", MIXER, None, CONVOLUTION),
        ("aten::mul", MIXER, None, MIXER),
        ("aten::mul", SCAN, None, SCAN),
        ("aten::mul", None, None, ELEMENTWISE),
        ("aten::empty", None, CONVOLUTION, CONVOLUTION),
        ("aten::copy_", None, None, OTHER),
        ("aten::copy_", None, ELEMENTWISE, ELEMENTWISE),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", None, None, ATTENTION),
        ("aten::native_layer_norm", None, None, NORMALISATION),
        ("aten::embedding", None, None, EMBEDDING),
        ("cudaLaunchKernel", None, PRODUCT, PRODUCT),
        ("my::operator", None, None, UNCLASSIFIED),
    ],
)
def test_a_class(name: str, part: str | None, inherited: str | None, expected: str) -> None:
    assert operator_class(name, part, inherited) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GPT2Attention", ATTENTION),
        ("MambaMixer", MIXER),
        ("Zamba2MambaMixer", MIXER),
        ("GatedSlotAttention", MIXER),
        ("H3Mixer", MIXER),
        ("MambaRMSNormGated", NORMALISATION),
        ("Lfm2ShortConv", CONVOLUTION),
        ("Conv1D", PRODUCT),
        ("Conv1d", CONVOLUTION),
        ("MambaBlock", None),
        ("H3Block", None),
        ("H3ForCausalLM", None),
        ("HyenaFilter", MIXER),
        ("DiagonalStateSpace", MIXER),
        ("StripedHyenaNorm", NORMALISATION),
        ("StripedHyenaModel", None),
        ("StripedHyenaMlp", None),
        ("GELUActivation", None),
    ],
)
def test_parts_are_found_by_their_names(name: str, expected: str | None) -> None:
    assert part_of(type(name, (nn.Module,), {})()) == expected


@dataclass
class Event:
    """As much of a profiler's event as is read."""

    label: str
    start: int
    end: int
    id: int = 0
    device: DeviceType = DeviceType.CPU
    linked: int = 0
    thread: int = 1
    size: int = 0

    def name(self) -> str:
        return self.label

    def start_ns(self) -> int:
        return self.start

    def duration_ns(self) -> int:
        return self.end - self.start

    def device_type(self) -> DeviceType:
        return self.device

    def correlation_id(self) -> int:
        return self.id

    def linked_correlation_id(self) -> int:
        return self.linked

    def start_thread_id(self) -> int:
        return self.thread

    def is_async(self) -> bool:
        return False

    def nbytes(self) -> int:
        return self.size


def profile_of(*inside: Event) -> CallProfile:
    return read([Event(f"{FORWARD}0", 0, 1000), *inside])[0]


def test_own_times_add_up_to_the_call() -> None:
    got = profile_of(
        Event(PREFIX + ATTENTION, 100, 600),
        Event("aten::linear", 120, 220),  # directly in attention
        Event(PREFIX + PRODUCT, 300, 500),
        Event("aten::linear", 310, 450),
        Event("aten::addmm", 320, 440),
        Event("aten::gelu", 700, 800),
        Event("aten::gelu", 700, 800, thread=2),  # another thread is no part of the call
    )
    nanoseconds = {name: round(1e9 * value) for name, value in got.host_s.items() if value}
    assert nanoseconds == {ATTENTION: 100, PRODUCT: 140, ELEMENTWISE: 100, HOST: 660}
    assert got.host_total_s == pytest.approx(1e-6) and got.n_events == 7


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ([], {SCAN: 150}),
        ([Event("aten::fft_rfft", 400, 420)], {CONVOLUTION: 170}),
        ([Event(PREFIX + SCAN, 400, 420), Event("aten::mul", 400, 420)], {SCAN: 70, PRODUCT: 100}),
    ],
)
def test_a_mixer_is_what_it_turns_out_to_be(inside: list[Event], expected: dict[str, int]) -> None:
    """Without a transform a recurrence, with one a convolution; where a function of it scans, its products are
    projections."""
    mixer = [Event(PREFIX + MIXER, 100, 600), Event("aten::mul", 150, 200), Event("aten::matmul", 200, 300)]
    got = profile_of(*mixer, *inside)
    assert {k: round(1e9 * v) for k, v in got.host_s.items() if v and k != HOST} == expected


def test_device_time_is_kept_apart_from_the_hosts() -> None:
    kernels = [Event("gemm", 5000, 5400, device=DeviceType.CUDA, linked=7)]
    kernels += [Event("copy", 5500, 5600, device=DeviceType.CUDA, linked=8)]
    kernels += [Event(PREFIX + ATTENTION, 5000, 9000, device=DeviceType.CUDA, linked=7)]  # a mark, no kernel
    kernels += [Event("cudaLaunchKernel", 310, 320, id=7, linked=8, thread=99)]  # its number means something else
    got = profile_of(Event("aten::mm", 100, 200, id=7), Event("aten::copy_", 300, 310, id=8), *kernels)
    assert {k: round(1e9 * v) for k, v in got.device_s.items() if v} == {PRODUCT: 400, OTHER: 100}
    assert round(1e9 * got.host_s[PRODUCT]) == 100 and got.host_total_s == pytest.approx(1e-6)
    assert got.device_elapsed_s == pytest.approx(600e-9), "100 ns between the kernels it was idle"


def test_the_peak_is_what_is_held_while_the_call_runs() -> None:
    changes = [(10, 100), (20, 50), (30, -100), (40, 20), (2000, 500)]
    memory = [Event("[memory]", at, at, size=size) for at, size in changes]
    assert profile_of(*memory).peak_bytes == 150


def test_unknown_operators_are_named() -> None:
    got = profile_of(Event("my::operator", 100, 200))
    assert list(got.unknown) == ["my::operator"] and got.unclassified_share == pytest.approx(0.1)
