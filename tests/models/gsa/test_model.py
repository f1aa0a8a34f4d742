"""Gated Slot Attention in digital: the parallel form is the recurrence, and a cache is the whole text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import aimc
from aimc import presets
from aimc.models.gsa import GSAConfig, GSAForCausalLM
from aimc.models.gsa.memory import Memory, chunked, empty_memory, recurrent
from tests.models.gsa.tiny import ids, tiny


def operands(n_tokens: int = 21, n_slots: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n_tokens, 4, generator=generator, dtype=dtype) for _ in range(3))
    gate = -3.0 * torch.rand(2, 3, n_tokens, n_slots, generator=generator, dtype=dtype)
    return [x.requires_grad_() for x in (q, k, v, gate)]


def test_the_recurrence_is_the_published_equations() -> None:
    q, k, v, gate = (x[:1, :1].detach() for x in operands(6))
    keys, values = torch.zeros(2, 5, 4, dtype=torch.float64)
    expected = []
    for t in range(6):
        alpha = torch.diag(gate[0, 0, t].exp())
        rest = torch.eye(5, dtype=torch.float64) - alpha
        keys = alpha @ keys + rest @ torch.ones(5, 1, dtype=torch.float64) @ k[0, 0, t][None]
        values = alpha @ values + rest @ torch.ones(5, 1, dtype=torch.float64) @ v[0, 0, t][None]
        expected.append(values.T @ torch.softmax(keys @ q[0, 0, t], dim=0))
    out, memory = recurrent(q, k, v, gate, empty_memory(k, 5))
    torch.testing.assert_close(out[0, 0], torch.stack(expected))
    torch.testing.assert_close(memory.keys[0, 0], keys)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_chunks_are_the_recurrence(size: int) -> None:
    """Outputs, memory and every gradient; chunks that the text does not fill; a memory from before."""
    given = operands()
    before = Memory(*(x[:, :, :5].detach().clone() for x in operands(n_tokens=8)[:2]))
    found = []
    for form in (recurrent, lambda *a: chunked(*a, size=size)):
        out, memory = form(*given, before)
        loss = (out * out).sum() + memory.keys.sin().sum() + memory.values.sum()
        found.append((out, *memory, *torch.autograd.grad(loss, given)))
    names = ("out", "keys", "values", "d query", "d key", "d value", "d gate")
    for name, one, other in zip(names, *found, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_a_gate_that_shuts_at_once_overflows_nothing() -> None:
    q, k, v, gate = operands(dtype=torch.float32)
    out, _ = chunked(q, k, v, gate * 100.0, empty_memory(k, 5))
    out.sum().backward()
    assert out.isfinite().all() and all(x.grad.isfinite().all() for x in (q, k, v, gate))


def test_token_by_token_is_the_whole_text() -> None:
    model, tokens = tiny(), ids(30)
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        first = model(tokens[:, :17], use_cache=True)
        cache = first.past_key_values
        rest = [model(tokens[:, t : t + 1], past_key_values=cache).logits for t in range(17, 30)]
        torch.testing.assert_close(torch.cat([first.logits, *rest], dim=1), whole, atol=1e-5, rtol=1e-4)
        two = model(tokens[:, 17:], past_key_values=model(tokens[:, :17], use_cache=True).past_key_values).logits
    torch.testing.assert_close(two, whole[:, 17:], atol=1e-5, rtol=1e-4)
    assert cache.get_seq_length() == 30
    assert cache.layers[0].keys.shape == (2, 2, 6, 8), "constant in size: slots, whatever the text"


def test_padding_on_the_left_changes_nothing() -> None:
    model, tokens = tiny(), ids(12)
    mask = torch.ones_like(tokens)
    tokens[1, :5] = mask[1, :5] = 0
    usual = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    padded = model.generate(tokens, attention_mask=mask, **usual)
    alone = model.generate(tokens[1:, 5:], **usual)
    torch.testing.assert_close(torch.stack(padded.logits)[:, 1:], torch.stack(alone.logits), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        whole = model(padded.sequences, attention_mask=torch.cat([mask, mask.new_ones(2, 5)], dim=1)).logits
    torch.testing.assert_close(torch.stack(padded.logits, dim=1), whole[:, 11:-1], atol=1e-5, rtol=1e-4)


def test_beams_move_memories() -> None:
    model = tiny()
    out = model.generate(ids(6), max_new_tokens=5, num_beams=3, do_sample=False)
    cache = model(ids(6), use_cache=True).past_key_values
    cache.reorder_cache(torch.tensor([1, 0]))
    other = model(ids(6)[[1, 0]], use_cache=True).past_key_values
    torch.testing.assert_close(cache.layers[1].values, other.layers[1].values)
    assert out.shape == (2, 11)
    with pytest.raises(NotImplementedError, match="taken back out of slots"):
        cache.crop(-1)


def test_saved_and_loaded_as_any_model(tmp_path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path), aimc.load_pretrained(tmp_path)):
        assert isinstance(again, GSAForCausalLM)
        with torch.no_grad():
            assert torch.equal(again(ids(9)).logits, model(ids(9)).logits)


def test_it_learns() -> None:
    torch.manual_seed(0)
    model, tokens = tiny().train(), ids(16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_slots": 0}, "num_slots=0: a memory needs at least one"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30: heads are equally wide"),
        ({"gate_normaliser": 0.0}, "gate_normaliser=0.0: .* 8 is usual"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GSAConfig(**sizes)


def test_bad_input_is_told() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="num_slots=6: its memory is slots .*put_on_cells"):
        aimc.convert(model, presets.gain_cell_cmos())
    with pytest.raises(ValueError, match="a text is given once"):
        model()
    other = DynamicCache()
    other.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    with pytest.raises(TypeError, match="3 tokens of another model"):
        model(ids(4), past_key_values=other)
