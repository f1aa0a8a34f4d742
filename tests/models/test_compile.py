"""A converted model under `torch.compile`: one graph, the same numbers, and never those of hardware it no longer runs
on."""

import pytest
import torch

import aimc
from aimc.hardware import Leakage, Noise
from tests.conftest import small_arrays, tiny_gpt2


def losses_and_gradients(forward, model, ids):
    model.zero_grad()
    torch.manual_seed(0)
    loss = forward(input_ids=ids, use_cache=False).logits.log_softmax(-1).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_model_equals_the_model(backend):
    torch._dynamo.reset()
    model, hardware = tiny_gpt2(), small_arrays()
    hardware.noise = Noise(write_v=0.01, read_qk=0.01, mismatch_gain=0.05)
    aimc.convert(model, hardware)
    ids = torch.randint(64, (2, 30), generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    first = losses_and_gradients(model, model, ids)
    assert_equal(losses_and_gradients(compiled, model, ids), first)

    other = small_arrays()
    other.leakage = Leakage(tau_s=1.0, token_time_s=0.1)
    aimc.set_hardware(model, other)
    second = losses_and_gradients(model, model, ids)
    assert any((a - b).abs().max() > 0.1 * a.abs().max() for a, b in zip(first, second, strict=True))
    assert_equal(losses_and_gradients(compiled, model, ids), second)


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
