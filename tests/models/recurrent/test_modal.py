"""Long convolutions, their states, and the attention between them, against direct evaluation in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

from aimc.models.recurrent.attention import FusedAttention, rotary
from aimc.models.recurrent.convolution import causal_convolution
from aimc.models.recurrent.modal import bilinear, diag_lin, final_state, impulse_response, modal_filter, powers


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def modes(channels: int = 3, n: int = 32) -> tuple[Tensor, Tensor]:
    """S4D-Lin's poles over its whole range of steps, and random residues; complex128."""
    dt = torch.logspace(-3, -1, channels, dtype=torch.float64)
    poles, gain = bilinear(dt, torch.complex(*(part.double() for part in diag_lin(n))))
    return poles, gain * torch.randn(channels, n, dtype=torch.complex128, generator=generator())


def recurrence(signal: Tensor, poles: Tensor, residues: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Token by token in complex128."""
    u, p, r = signal.double().numpy(), poles.numpy(), residues.numpy()
    x, outputs = np.zeros((*u.shape[:2], p.shape[-1]), dtype=complex), []
    for t in range(u.shape[-1]):
        x = p * x + u[..., t, None]
        outputs.append((r * x).sum(-1).real)
    return np.stack(outputs, axis=-1), x


@pytest.mark.parametrize(("tokens", "taps"), [(1, 1), (7, 3), (64, 64), (65, 200)])
def test_convolution_is_causal_and_the_direct_sum(tokens: int, taps: int) -> None:
    signal = torch.randn(2, 3, tokens, generator=generator())
    kernel = torch.randn(3, taps, generator=generator())
    expected = np.stack([[np.convolve(u, k)[:tokens] for u, k in zip(row, kernel, strict=True)] for row in signal])
    np.testing.assert_allclose(causal_convolution(signal, kernel), expected, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_powers_of_anything_that_has_any(n: int) -> None:
    base = torch.tensor([0, 0.5 + 0.5j, -1j], dtype=torch.complex128, requires_grad=True)
    expected = base.detach()[:, None] ** torch.arange(n)
    expected[0] = torch.eye(1, n)[0]
    torch.testing.assert_close(powers(base, n), expected)
    (powers(base, n) * base[:, None]).real.sum().backward()
    assert base.grad is not None and base.grad.isfinite().all()


@pytest.mark.parametrize("n", [1, 2, 63, 2048])
def test_impulse_response_is_the_direct_sum_of_powers(n: int) -> None:
    poles, residues = modes()
    direct = (residues.numpy()[..., None] * poles.numpy()[..., None] ** np.arange(n)).sum(1).real
    assert np.abs(impulse_response(poles, residues, n) - direct).max() < 3e-6 * np.abs(direct).max()


def test_the_filter_is_the_recurrence_whole_in_parts_and_in_steps() -> None:
    poles, residues = modes()
    signal = torch.randn(2, 3, 300, generator=generator())
    expected, last = recurrence(signal, poles, residues)
    whole, state = modal_filter(signal, poles, residues, keep_state=True)
    assert state is not None
    np.testing.assert_allclose(whole, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(state, last, atol=1e-5 * np.abs(last).max())
    np.testing.assert_allclose(final_state(poles, signal), last, atol=1e-5 * np.abs(last).max())
    state, outputs = None, []
    for part in signal.split([100, 1, 1, 57, 141], dim=-1):
        output, state = modal_filter(part, poles, residues, state, keep_state=True)
        outputs.append(output)
    np.testing.assert_allclose(torch.cat(outputs, -1), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(state, last, atol=1e-5 * np.abs(last).max())
    assert modal_filter(signal, poles, residues)[1] is None


def test_autocast_leaves_it_in_float32() -> None:
    poles, residues = modes()
    signal = torch.randn(2, 3, 50, generator=generator())
    wanted, state = modal_filter(signal, poles, residues, keep_state=True)
    with torch.autocast("cpu", torch.bfloat16):
        output, same = modal_filter(signal, poles, residues, keep_state=True)
    assert output.equal(wanted) and same is not None and state is not None and same.equal(state)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_attention_is_llamas_with_fused_projections(n_kv_heads: int) -> None:
    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    llama = LlamaAttention(config, 0).eval()
    fused = FusedAttention(config, 0, n_kv_heads=n_kv_heads, rotary_dim=8).eval()
    parts = [llama.q_proj, llama.k_proj, llama.v_proj]
    fused.Wqkv.weight.data = torch.cat([part.weight for part in parts])
    fused.Wqkv.bias.data = torch.cat([part.bias for part in parts])
    fused.out_proj.load_state_dict(llama.o_proj.state_dict())
    hidden, turned = torch.randn(2, 9, 32), rotary(torch.arange(9)[None], 8, 500.0, torch.float32)
    with torch.no_grad():
        expected = llama(hidden, position_embeddings=turned, attention_mask=None)[0]
        torch.testing.assert_close(fused(hidden, turned)[0], expected)
        half = FusedAttention(config, 0, n_kv_heads=n_kv_heads, rotary_dim=4).eval()
        half.load_state_dict(fused.state_dict())
        still = half(hidden, rotary(torch.zeros(1, 9), 4, 500.0, torch.float32))[0]
        torch.testing.assert_close(still, half(hidden)[0])
        assert not torch.allclose(half(hidden, rotary(torch.arange(9)[None], 4, 500.0, torch.float32))[0], still)
