"""H3: both forms of its state spaces, its cache, its limits, and what goes onto arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

import aimc
from aimc import presets
from aimc.models.h3 import H3Config, H3ForCausalLM, H3Model, published
from aimc.models.h3.layers import H3Mixer
from aimc.models.h3.state_space import DiagonalStateSpace, ShiftStateSpace

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "attention_layers": [1],
    "state_size": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def model(**changes: Any) -> H3ForCausalLM:
    torch.manual_seed(0)
    return H3ForCausalLM(H3Config(**TINY | changes)).eval()


def ids(length: int = 20) -> Tensor:
    return torch.randint(2, 64, (2, length), generator=torch.Generator().manual_seed(1))


def of_kind(kind: type, **changes: Any) -> Any:
    return next(module for module in model(**changes).modules() if isinstance(module, kind))


def test_the_diagonal_kernel_is_c_a_to_the_t_b_in_float64() -> None:
    space = of_kind(DiagonalStateSpace, state_size=64)
    dt, a_real, a_imag = (x.detach().double().numpy() for x in (space.log_dt, space.inv_A_real, space.A_imag))
    b, c = (torch.view_as_complex(x.detach().double()).numpy() for x in (space.B, space.C[0]))
    a, dt = -np.exp(a_real) + 1j * a_imag, np.exp(dt)[:, None]
    stepped, into = (1 + dt * a / 2) / (1 - dt * a / 2), dt * b / (1 - dt * a / 2)
    direct = 2 * (c[..., None] * stepped[..., None] ** np.arange(2048) * into[..., None]).sum(1).real
    impulse = torch.eye(1, 2048)[None].expand(1, 16, -1)
    found = (space(impulse, None, keep_state=False)[0] - space.D[:, None] * impulse).detach()
    assert np.abs(found[0] - direct).max() < 1e-5 * np.abs(direct).max()


def test_the_shift_kernel_is_a_recurrence_with_a_shift_matrix() -> None:
    space = ShiftStateSpace(3, 5)
    for parameter in space.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    state, outputs = torch.zeros(2, 3, 5), []
    for u in inputs.unbind(-1):
        state = torch.nn.functional.pad(state, (1, -1)) + space.B * u[..., None]
        outputs.append((space.C * state).sum(-1) + space.D * u)
    torch.testing.assert_close(space(inputs, 12), torch.stack(outputs, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(space(inputs, 1), torch.stack(outputs, -1)[..., -1:], atol=1e-5, rtol=1e-5)


def test_convolution_and_recurrence_agree_over_2048_tokens() -> None:
    config = H3Config(**TINY | {"state_size": 64})
    mixer: H3Mixer = of_kind(H3Mixer, state_size=64)
    hidden = torch.randn(1, 2048, 16, generator=torch.Generator().manual_seed(2))
    cache = DynamicCache(config=config)
    with torch.no_grad():
        whole = mixer(hidden)
        steps = torch.cat([mixer(token, past_key_values=cache) for token in hidden.split(1, dim=1)], dim=1)
    layer = cache.layers[0]
    assert layer.conv_states[0].shape == (1, 16, 64) and layer.recurrent_states[0].shape == (1, 16, 32)
    assert (steps - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize(("attention", "gated"), [([1], True), ([0, 2], True), ([], True), ([1], False), ([], False)])
def test_generation_with_a_cache_is_the_full_pass(attention: list[int], gated: bool) -> None:
    hybrid = model(attention_layers=attention, gated=gated)
    tokens, mask = ids(12), torch.ones(2, 12, dtype=torch.long)
    tokens[1, :5] = mask[1, :5] = 0
    usual: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    usual |= {"output_logits": True, "return_dict_in_generate": True}
    padded = hybrid.generate(tokens, attention_mask=mask, **usual)
    alone = hybrid.generate(tokens[1:, 5:], **usual)
    torch.testing.assert_close(torch.stack(padded.logits)[:, 1:], torch.stack(alone.logits), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        whole = hybrid(padded.sequences[:1, :-1]).logits[:, -6:]
        torch.testing.assert_close(torch.stack(padded.logits)[:, 0], whole[0], atol=1e-5, rtol=1e-4)
        masked = hybrid(tokens, attention_mask=mask).logits[1:, 5:]
        torch.testing.assert_close(masked, hybrid(tokens[1:, 5:]).logits, atol=1e-5, rtol=1e-4)
        cache = hybrid(ids()[:, :9], use_cache=True).past_key_values
        rest = hybrid(ids()[:, 9:], past_key_values=cache).logits  # several tokens at once
        torch.testing.assert_close(rest, hybrid(ids()).logits[:, 9:], atol=1e-5, rtol=1e-4)
        assert cache.get_seq_length() == 20


def test_without_attention_every_text_is_remembered_in_the_same_space() -> None:
    pure = model(attention_layers=[])
    sizes = []
    for length in (4, 60):
        cache = pure(ids(length), use_cache=True).past_key_values
        states = [(*layer.conv_states.values(), *layer.recurrent_states.values()) for layer in cache.layers]
        sizes.append([state.numel() for layer in states for state in layer])
        assert cache.get_seq_length() == length
    assert sizes[0] == sizes[1]
    cache.reset()
    torch.testing.assert_close(pure(ids(), past_key_values=cache).logits, pure(ids()).logits)


def test_the_published_125m_has_its_parameters() -> None:
    with torch.device("meta"):
        large = H3ForCausalLM(published("125m"))
    assert sum(parameter.numel() for parameter in large.parameters()) == 126_387_456
    assert [number for number, layer in enumerate(large.backbone.layers) if layer.has_attention] == [6]


def test_transformers_knows_it_once_aimc_is_imported(tmp_path) -> None:
    tiny = model()
    tiny.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), H3Config)
    assert isinstance(AutoModel.from_pretrained(tmp_path), H3Model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, H3ForCausalLM)
    assert all(a.equal(b) for a, b in zip(again.parameters(), tiny.parameters(), strict=True))
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mixer = half.backbone.layers[0].mixer
    assert mixer.q_proj.weight.dtype == torch.bfloat16 and mixer.diagonal.log_dt.dtype == torch.float32
    torch.testing.assert_close(half(ids()).logits.float(), tiny(ids()).logits, atol=2e-2, rtol=0.1)


def test_it_trains_and_fresh_weights_are_as_published() -> None:
    wide = model(hidden_size=128, state_size=64)
    mixer = wide.backbone.layers[0].mixer
    assert mixer.diagonal.A_imag[0, 3].item() == pytest.approx(3 * np.pi)
    assert mixer.diagonal.inv_A_real.exp().eq(0.5).all() and mixer.shift.B[:, 0].eq(1).all()
    assert mixer.diagonal.log_dt.min() > -6.91 and mixer.diagonal.log_dt.max() < -2.3
    assert mixer.output_linear.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert mixer.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    wide.train()(ids(), labels=ids(), use_cache=False).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in wide.parameters())
    wide.gradient_checkpointing_enable()
    wanted = mixer.diagonal.log_dt.grad.clone()
    wide.zero_grad()
    wide(ids(), labels=ids(), use_cache=False).loss.backward()
    torch.testing.assert_close(mixer.diagonal.log_dt.grad, wanted)


def test_only_its_attention_goes_onto_arrays() -> None:
    report = aimc.convert(model(), presets.gain_cell_cmos())
    assert report.layers == ["backbone.layers.1.mixer"]
    assert any("layers 0, 2 have no attention and stay digital" in note for note in report.notes)
    with pytest.raises(
        ValueError, match=r"none of its 3 layers has attention, so nothing would be replaced; use"
    ) as told:
        aimc.convert(model(attention_layers=[]), presets.gain_cell_cmos())
    assert "\n" not in str(told.value)


def test_a_text_longer_than_it_was_built_for_is_refused() -> None:
    for attention in ([1], []):
        short = model(attention_layers=attention)
        with pytest.raises(ValueError, match=r"a text of 65 tokens, but H3Config.max_position_embeddings=64"):
            short(ids(65))
        cache = short(ids(64), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="a text of 65 tokens"):
            short(ids(1), past_key_values=cache)
    assert model(max_position_embeddings=None)(ids(100)).logits.shape == (2, 100, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_layers": [3]}, r"attention_layers=\[3\]: there is no layer 3 among 3"),
        ({"num_attention_heads": 3}, "hidden_size=16: not a multiple of num_attention_heads=3"),
        ({"rotary_dim": 10}, "rotary_dim=10: features turn in pairs, and a head has 8"),
        ({"state_size": 7}, "state_size=7: a complex mode stands for two states"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        H3Config(**TINY | changes)


def test_no_such_size() -> None:
    with pytest.raises(ValueError, match="size='7b'.*use one of 125m, 355m"):
        published("7b")


def test_tokens_that_are_only_tried_are_refused() -> None:
    with pytest.raises(ValueError, match="stateful"):
        model().generate(ids(8), max_new_tokens=4, prompt_lookup_num_tokens=2)


def test_state_spaces_stay_precise_in_half_precision() -> None:
    half = model().to(torch.bfloat16)
    space = next(module for module in half.modules() if isinstance(module, DiagonalStateSpace))
    assert {x.dtype for x in space.parameters()} == {torch.float32}
    assert half.lm_head.weight.dtype == torch.bfloat16
    torch.testing.assert_close(half(ids()).logits.float(), model()(ids()).logits, atol=5e-2, rtol=0.1)


@pytest.mark.parametrize("attention", [[], [1]])
def test_transformers_usual_empty_cache_is_filled(attention: list[int]) -> None:
    usual, own = model(attention_layers=attention), DynamicCache()
    with torch.no_grad():
        whole = usual(ids()).logits
        usual(ids()[:, :12], past_key_values=own, use_cache=True)
        rest = usual(ids()[:, 12:], past_key_values=own, use_cache=True).logits
    torch.testing.assert_close(rest, whole[:, 12:], atol=1e-4, rtol=1e-3)
