"""Mamba's scan for training: transformers' values and gradients, in a backward pass that grows with the length."""

from __future__ import annotations

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba

from aimc.models.selective_scan import Recurrence, lighten_backward


def test_values_and_gradients_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = modeling_mamba.mamba_selective_scan
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", theirs)  # put back at the end
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
    model = MambaForCausalLM(MambaConfig(**sizes)).train()
    ids = torch.randint(0, 50, (2, 20))

    def found() -> list[torch.Tensor]:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    before = found()
    lighten_backward(model)
    ours = modeling_mamba.mamba_selective_scan
    lighten_backward(model)
    assert theirs is not ours is modeling_mamba.mamba_selective_scan, "exchanged once"
    for want, got in zip(before, found(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    step = model.eval().generate(ids[:1], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", theirs)
    assert step.equal(model.generate(ids[:1], max_new_tokens=3, min_new_tokens=3, do_sample=False))


def test_other_models_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = modeling_mamba.mamba_selective_scan
    lighten_backward(torch.nn.Linear(2, 2))
    assert modeling_mamba.mamba_selective_scan is theirs


def test_gradients_of_the_recurrence_are_those_of_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    a, x = (torch.rand(2, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(Recurrence.apply, (a, x))


@pytest.mark.parametrize(("n_tokens", "chunk"), [(16, 4), (19, 4), (5, 7), (1, 1), (9, 1)])
def test_chunks_at_once_are_one_token_after_the_other(n_tokens: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    a, x, weight = (torch.rand(2, n_tokens, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    a[:, n_tokens // 2] = 0.0  # a token that forgets all

    def found(size: int) -> list[torch.Tensor]:
        of = [y.clone().requires_grad_() for y in (a, x)]
        states = Recurrence.apply(*of, size)
        (states * weight).sum().backward()
        return [states, *(y.grad for y in of)]

    for want, got in zip(found(n_tokens), found(chunk), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
