"""Generation on arrays: token by token equals the full pass for every family, and `generate` works as users know it."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

import aimc
from aimc import presets
from aimc.hardware import Array, ConfigError, Converter, Hardware, Leakage, Noise, Protection
from aimc.models.arrays import gain_cell_layers, set_generator
from aimc.nn.cache import GainCellCache
from tests.conftest import shared_model
from tests.tiny_models import FAMILIES, tiny_model

W = 16
NOISE = Noise(
    write_v=0.01,
    read_qk=0.02,
    read_av=0.02,
    mismatch_gain=0.05,
    mismatch_offset_v=0.01,
    column_gain=0.05,
    column_offset=0.02,
)
LENGTH = 3 * W
POSITIONS = {"gpt2": "n_positions"}
FAST = ("gpt2", "gemma2", "llama")
"""Families of learned positions, of a sliding window, and most like the others; `make slow` does all parts with all."""
most_families = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES]
)


def machine(**changes: object) -> Hardware:
    """A window of 16 tokens in sub-tiles of 4, a tenth of the voltage lost within it."""
    return replace(
        presets.gain_cell_cmos(),
        array=Array(window=W, rows=4),
        leakage=Leakage(tau_s=1.0, token_time_s=0.1 / W),
        noise=NOISE,
        **changes,
    )


def softmax_machine() -> Hardware:
    signed = Converter(n_levels=32, v_min=-1.0, v_max=1.0, coding="sign_magnitude")
    return machine(activation="softmax", input_dac=signed, score_adc=signed, probability_dac=Converter(n_levels=32))


def converted(family: str = "llama", hardware: Hardware | None = None, **kwargs: object) -> PreTrainedModel:
    """A tiny model whose logits depend on what its arrays compute."""
    model = tiny_model(family, **{POSITIONS.get(family, "max_position_embeddings"): 4 * W})
    model.generation_config.eos_token_id = None  # texts of a known length
    aimc.convert(model, hardware or machine(), **kwargs)
    with torch.no_grad():
        for _, layer in gain_cell_layers(model):
            layer.query_scaler.scale.mul_(2.0)
            layer.output_scaler.scale.mul_(5.0)
    return model


def tokens(batch: int = 2, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(2, 60, (batch, length), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def whole(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    set_generator(model, torch.Generator().manual_seed(3))
    return model(ids, attention_mask=mask, **positions(mask)).logits


@torch.no_grad()
def in_pieces(
    model: PreTrainedModel, ids: torch.Tensor, sizes: list[int], mask: torch.Tensor | None = None
) -> torch.Tensor:
    set_generator(model, torch.Generator().manual_seed(3))
    cache, logits, start = GainCellCache(model), [], 0
    while start < ids.shape[1]:
        stop = start + (sizes.pop(0) if len(sizes) > 1 else sizes[0])
        part = None if mask is None else mask[:, :stop]
        where = {name: x[:, start:stop] for name, x in positions(mask).items()}
        logits.append(model(ids[:, start:stop], attention_mask=part, past_key_values=cache, **where).logits)
        start = stop
    return torch.cat(logits, dim=1)


def positions(mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {} if mask is None else {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def assert_same_logits(got: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    difference = (got - expected).abs()
    if mask is not None:
        difference = difference[mask.bool()]
    assert difference.max() < 1e-4


# --- Decode equals the full pass
# ---------------------------------------------------------------------------------------------


QUICK = [(family, [7]) for family in FAMILIES] + [
    ("llama", [1]),
    ("llama", [20, 1]),
    ("gpt2", [1]),
    ("gemma2", [20, 1]),
]


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        pytest.param(family, sizes, marks=() if (family, sizes) in QUICK else pytest.mark.slow)
        for family in FAMILIES
        for sizes in ([1], [7], [20, 1])
    ],
)
def test_decode_equals_the_full_pass(family: str, sizes: list[int]) -> None:
    model, ids = converted(family), tokens()
    expected = whole(model, ids)
    assert_same_logits(in_pieces(model, ids, list(sizes)), expected)
    with torch.no_grad():  # the comparison would see a wrong window
        other = copy.deepcopy(model)
        aimc.set_hardware(other, replace(machine(), array=Array(window=2 * W, rows=4)))
    assert (whole(other, ids) - expected)[:, 2 * W :].abs().max() > 1e-2


@most_families
def test_left_padded_batches(family: str) -> None:
    model, ids = converted(family), tokens(batch=3)
    mask = torch.ones_like(ids)
    mask[1, :5], mask[2, :19] = 0, 0
    expected = whole(model, ids, mask)
    for sizes in ([1], [20, 1], [9]) if family == "llama" else ([9],):
        assert_same_logits(in_pieces(model, ids, sizes, mask), expected, mask)


@most_families
def test_softmax_and_protection(family: str) -> None:
    model, ids = converted(family, softmax_machine()), tokens()
    assert_same_logits(in_pieces(model, ids, [10, 1]), whole(model, ids))
    aimc.set_hardware(model, replace(softmax_machine(), protection=Protection(n_sink=2, n_recent=3)))
    assert_same_logits(in_pieces(model, ids, [10, 1]), whole(model, ids))


def test_skipped_layers_keep_a_digital_cache() -> None:
    for family in ("llama", "gemma2"):
        model, ids = converted(family, skip_layers=[1]), tokens()
        mask = torch.ones_like(ids)
        mask[1, :5] = 0
        expected, of_padded = whole(model, ids), whole(model, ids, mask)
        for sizes in ([1], [7], [20, 1]):
            assert_same_logits(in_pieces(model, ids, list(sizes)), expected)
            assert_same_logits(in_pieces(model, ids, list(sizes), mask), of_padded, mask)


def test_pretrained_tiny_stories() -> None:
    model = shared_model("TinyStories-656K")
    aimc.convert(model, machine())
    ids = torch.randint(3, 2048, (2, LENGTH), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    for sizes in ([1], [7]):
        assert_same_logits(in_pieces(model, ids, sizes), whole(model, ids))
        assert_same_logits(in_pieces(model, ids, sizes, mask), whole(model, ids, mask), mask)


def test_the_shipped_model() -> None:
    model = aimc.from_pretrained("checkpoints/shipped/finetuned").eval()
    aimc.set_hardware(
        model, replace(aimc.models.arrays.hardware_of(model), array=Array(window=64, rows=16), noise=NOISE)
    )
    ids = torch.randint(3, 2048, (2, 100), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    expected = whole(model, ids, mask)
    for sizes in ([1], [30]):
        assert_same_logits(in_pieces(model, ids, sizes, mask), expected, mask)


# --- generate
# ----------------------------------------------------------------------------------------------------------------


def recomputed(model: PreTrainedModel, prompt: torch.Tensor, n_new: int) -> torch.Tensor:
    """Greedy text without any cache."""
    ids = prompt
    for _ in range(n_new):
        ids = torch.cat([ids, whole(model, ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids


def quiet() -> PreTrainedModel:
    return converted(hardware=replace(machine(), noise=Noise(mismatch_gain=0.05)))


def greedy(model: PreTrainedModel, prompt: torch.Tensor, n_new: int = 30, **kwargs: object) -> torch.Tensor:
    return model.generate(prompt, max_new_tokens=n_new, do_sample=False, pad_token_id=0, **kwargs)


def test_greedy_text_is_that_of_recomputation() -> None:
    model, prompt = quiet(), tokens(length=10)
    expected = recomputed(model, prompt, 30)
    torch.testing.assert_close(greedy(model, prompt), expected)
    torch.testing.assert_close(greedy(model, prompt, prefill_chunk_size=3), expected)
    torch.testing.assert_close(greedy(model, prompt, use_cache=False), expected)


def test_padded_prompts_give_the_text_of_each_alone() -> None:
    """Rows start in other slots than alone, so the same only without mismatch and with a window that is not full."""
    model = converted(hardware=replace(machine(), noise=Noise(), array=Array(window=64, rows=64)))
    prompt = tokens(length=10)
    alone = greedy(model, prompt[1:, 4:])[:, 6:]
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    assert torch.equal(greedy(model, prompt, attention_mask=mask)[1:, 10:], alone)


def test_beam_search_and_sampling() -> None:
    model, prompt = quiet(), tokens(length=10)
    cached, plain = (
        model.generate(prompt, max_new_tokens=25, num_beams=4, pad_token_id=0, use_cache=use, do_sample=False)
        for use in (True, False)
    )
    torch.testing.assert_close(cached, plain)
    texts = []
    for use in (True, False):
        torch.manual_seed(0)
        texts.append(
            model.generate(
                prompt, max_new_tokens=25, do_sample=True, num_return_sequences=2, pad_token_id=0, use_cache=use
            )
        )
    torch.testing.assert_close(*texts)


def test_continuing_a_cache() -> None:
    model, prompt = quiet(), tokens(length=10)
    cache = GainCellCache(model)
    first = greedy(model, prompt, 12, past_key_values=cache)
    assert cache.get_seq_length() == first.shape[1] - 1  # the last token has not been read yet
    second = greedy(model, first, 12, past_key_values=cache)
    torch.testing.assert_close(second, recomputed(model, prompt, 24))
    assert cache.n_written == second.shape[1] - 1


def test_a_cache_by_hand_as_in_transformers() -> None:
    model, ids = quiet(), tokens()
    with torch.no_grad():
        out = model(ids[:, :20], use_cache=True)
        assert isinstance(out.past_key_values, GainCellCache)
        rest = model(ids[:, 20:], past_key_values=out.past_key_values).logits
        assert model(ids).past_key_values is None
    assert_same_logits(torch.cat([out.logits, rest], dim=1), whole(model, ids))


@torch.no_grad()
def test_an_empty_digital_cache_of_the_user_becomes_one_of_arrays() -> None:
    """The loop of transformers' own documentation, with the cache made by the user."""
    model, ids = quiet(), tokens(length=20)
    cache = DynamicCache(config=model.config)
    logits = [model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits for t in range(20)]
    assert_same_logits(torch.cat(logits, dim=1), whole(model, ids))
    assert isinstance(cache, GainCellCache) and cache.get_seq_length() == 20


@torch.no_grad()
def test_a_cache_given_by_position() -> None:
    model, ids = quiet(), tokens(length=20)
    cache = GainCellCache(model)
    model.model(ids[:, :12], None, None, cache)
    rest = model.lm_head(model.model(ids[:, 12:], None, None, cache).last_hidden_state)
    assert_same_logits(rest, whole(model, ids)[:, 12:])


@torch.no_grad()
def test_caches_are_reset_copied_and_repeated() -> None:
    model, ids = quiet(), tokens(length=20)
    cache = model(ids[:, :12], use_cache=True).past_key_values
    copied, repeated = copy.deepcopy(cache), copy.deepcopy(cache)
    expected = model(ids[:, 12:], past_key_values=cache).logits
    assert_same_logits(model(ids[:, 12:], past_key_values=copied).logits, expected)
    repeated.batch_repeat_interleave(2)
    assert_same_logits(
        model(ids[:, 12:].repeat_interleave(2, 0), past_key_values=repeated).logits, expected.repeat_interleave(2, 0)
    )
    cache.reset()
    assert cache.get_seq_length() == 0
    assert_same_logits(model(ids, past_key_values=cache).logits, whole(model, ids))


@torch.no_grad()
def test_texts_that_begin_with_padding_alone() -> None:
    """As `pad_to_multiple_of` gives them; no token is there yet that could be protected."""
    hardware = replace(softmax_machine(), noise=Noise(), protection=Protection(n_sink=2))
    model, ids = converted(hardware=hardware), tokens(length=24)
    mask = torch.ones_like(ids)
    mask[:, :6] = 0
    assert_same_logits(in_pieces(model, ids, [1], mask), whole(model, ids, mask), mask)


@torch.no_grad()
def test_protected_tokens_are_counted() -> None:
    model = converted(hardware=replace(machine(), protection=Protection(n_sink=2, n_recent=3)))
    cache = model(tokens(length=20), use_cache=True).past_key_values
    assert (cache.n_written, cache.n_digital, cache.n_refreshed) == (20, 5, 0)


def test_streaming_and_stopping() -> None:
    class AfterTwenty(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 20, device=input_ids.device)

    class Words:
        def decode(self, ids: list[int], **kwargs: object) -> str:
            return "".join(f"{i} " for i in ids)

    model, prompt = quiet(), tokens(batch=1, length=10)
    streamer = TextIteratorStreamer(Words(), skip_prompt=True)  # type: ignore[arg-type]
    text = greedy(model, prompt, 30, stopping_criteria=StoppingCriteriaList([AfterTwenty()]), streamer=streamer)
    assert text.shape[1] == 20
    assert [int(word) for word in "".join(streamer).split()] == text[0, 10:].tolist()


def test_time_passes() -> None:
    model, ids = quiet(), tokens()
    with torch.no_grad():
        logits = []
        for seconds in (0.0, 0.0, 0.3):
            cache = GainCellCache(model)
            model(ids[:, :20], past_key_values=cache)
            cache.wait(seconds)
            logits.append(model(ids[:, 20:21], past_key_values=cache).logits)
    torch.testing.assert_close(logits[0], logits[1])
    assert (logits[2] - logits[0]).abs().max() > 1e-2


def test_refresh_keeps_more_of_a_leaky_text() -> None:
    hardware = replace(machine(), leakage=Leakage(tau_s=1.0, token_time_s=0.04), noise=Noise())
    model, ids = converted(hardware=hardware), tokens()
    with torch.no_grad():
        leaking = whole(model, ids)
        cache = GainCellCache(model, refresh_every=1)
        refreshed = torch.cat([model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(LENGTH)], dim=1)
        aimc.set_hardware(model, replace(hardware, leakage=Leakage()))
        still = whole(model, ids)
    assert cache.n_refreshed > LENGTH
    assert (refreshed - still).abs().mean() < 0.5 * (leaking - still).abs().mean()


def test_read_noise_is_alike_in_both_forms() -> None:
    model, ids = (
        converted(hardware=replace(machine(), noise=Noise(read_qk=0.03, read_av=0.03))),
        tokens(batch=1, length=20).expand(n := 120, -1),
    )

    def last(cached: bool) -> torch.Tensor:
        """Of as many equal texts, each with noise of its own."""
        set_generator(model, torch.Generator().manual_seed(1000 * cached))
        with torch.no_grad():
            if not cached:
                return model(ids).logits[:, -1]
            cache = GainCellCache(model)
            model(ids[:, :-1], past_key_values=cache)
            return model(ids[:, -1:], past_key_values=cache).logits[:, -1]

    parallel, decoded = last(cached=False), last(cached=True)
    error = ((parallel.var(dim=0) + decoded.var(dim=0)) / n).sqrt()
    assert ((parallel.mean(dim=0) - decoded.mean(dim=0)).abs() < 5 * error).all()
    ratio = parallel.std(dim=0) / decoded.std(dim=0)
    assert 0.9 < ratio.mean() < 1.1 and parallel.std(dim=0).min() > 0


@pytest.mark.slow
@torch.no_grad()
def test_memory_is_flat_over_8_windows() -> None:
    model = quiet()
    cache = GainCellCache(model)
    sizes = []
    for t in range(8 * W):
        # Rotary positions go on past the training length; what is looked at is memory.
        model(torch.full((1, 1), 5), past_key_values=cache)
        if t % W == W - 1 and t >= W:
            gc.collect()
            sizes.append(sum(x.nbytes for x in gc.get_objects() if type(x) is torch.Tensor))
    assert max(sizes) - min(sizes) < 2000  # a few position tensors come and go
    assert cache.get_seq_length() == 8 * W


# --- Bad input
# ---------------------------------------------------------------------------------------------------------------


def test_a_cache_from_other_hardware_or_batch() -> None:
    model, ids = quiet(), tokens()
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="batch of 2.*have 1"):
            model(ids[:1, 5:6], past_key_values=cache)
        aimc.set_hardware(model, replace(machine(), noise=Noise(mismatch_gain=0.05), leakage=Leakage()))
        with pytest.raises(ValueError, match="other hardware"):
            model(ids[:, 5:6], past_key_values=cache)


def test_caches_of_another_class() -> None:
    model, ids = quiet(), tokens()
    digital = tiny_model("llama")
    with torch.no_grad():
        filled = digital(ids[:, :5], use_cache=True).past_key_values
        with pytest.raises(TypeError, match="DynamicCache of 5 tokens.*GainCellCache"):
            model(ids[:, 5:6], past_key_values=filled)
        with pytest.raises(TypeError, match="StaticCache.*GainCellCache"):
            greedy(model, ids[:, :5], 3, cache_implementation="static")
        cache = GainCellCache(model)
        digital(ids[:, :5], past_key_values=cache)
        with pytest.raises(TypeError, match="digital layer.*DynamicCache"):
            digital(ids[:, 5:6], past_key_values=cache)


def test_a_failed_pass_leaves_no_cache_behind() -> None:
    model, ids = quiet(), tokens()
    with torch.no_grad():
        expected = whole(model, ids)
        with pytest.raises(ValueError, match="batch of"):
            model(ids[:1, 5:6], past_key_values=model(ids[:, :5], use_cache=True).past_key_values)
    assert all(layer.layer_cache is None for _, layer in gain_cell_layers(model))
    torch.testing.assert_close(whole(model, ids), expected)


@torch.no_grad()
def test_a_pass_stopped_from_the_keyboard_leaves_no_cache_behind() -> None:
    """Hooks that undo things do not run then."""

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    model, ids = quiet(), tokens(length=10)
    expected = whole(model, ids)
    cache = model(ids[:, :5], use_cache=True).past_key_values
    handle = model.model.layers[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(ids[:, 5:], past_key_values=cache)
    handle.remove()
    with pytest.raises(ValueError, match="have read 5 to 10 tokens: a pass over it was stopped midway"):
        model(ids[:, 5:], past_key_values=cache)
    torch.testing.assert_close(whole(model, ids), expected)


def test_assisted_decoding_is_refused() -> None:
    with pytest.raises((NotImplementedError, ValueError), match="overwritten|crop|roll"):
        greedy(quiet(), tokens(batch=1, length=10), 8, prompt_lookup_num_tokens=3)


def test_a_cache_of_another_model() -> None:
    cache = GainCellCache(tiny_converted_of_three_layers())
    with torch.no_grad(), pytest.raises(ValueError, match=r"layers \[0, 1, 2\], and the model for \[0, 1\]"):
        quiet()(tokens(length=5), past_key_values=cache)


def tiny_converted_of_three_layers() -> PreTrainedModel:
    model = tiny_model("llama", num_hidden_layers=3)
    aimc.convert(model, machine())
    return model


def test_padding_on_the_wrong_side() -> None:
    model, ids = quiet(), tokens(length=10)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    with torch.no_grad(), pytest.raises(ValueError, match="pad on the left"):
        model(ids, attention_mask=mask, use_cache=True)


def test_a_prompt_longer_than_the_window_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimc.nn.cache._SAID", set())
    model, prompt = quiet(), tokens(length=W + 9)
    for _ in range(2):
        greedy(model, prompt[:, :-1], 2, prefill_chunk_size=9)
        torch.testing.assert_close(greedy(model, prompt, 5), recomputed(model, prompt, 5))
    assert sum("do not see" in record.getMessage() for record in caplog.records) == 1


def test_texts_packed_into_one_row() -> None:
    model, ids = quiet(), tokens(batch=1, length=12)
    packed = torch.cat([torch.arange(7), torch.arange(5)])[None]
    with torch.no_grad(), pytest.raises(NotImplementedError, match="packed into one row.*attention_mask"):
        model(ids, position_ids=packed)


def test_tokens_cannot_be_taken_back() -> None:
    model, ids = quiet(), tokens()
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
    cache.crop(0)
    with pytest.raises(NotImplementedError, match="overwritten"):
        cache.crop(1)


def test_what_no_cache_can_be_made_of() -> None:
    with pytest.raises(ValueError, match="no gain-cell layer"):
        GainCellCache(tiny_model("llama"))
    with pytest.raises(ValueError, match="refresh_every=0"):
        GainCellCache(quiet(), refresh_every=0)
    with pytest.raises(TypeError, match="aimc.GainCellCache"):
        DynamicCacheUser().run()


class DynamicCacheUser:
    """Someone who keeps a digital cache of two tokens and goes on with it."""

    def run(self) -> None:
        model, ids = quiet(), tokens()
        cache = DynamicCache(config=model.config)
        for layer in range(2):
            cache.update(torch.zeros(2, 2, 2, 8), torch.zeros(2, 2, 2, 8), layer)
        with torch.no_grad():
            model(ids[:, :1], past_key_values=cache)


def test_a_sliding_window_that_is_no_whole_number_of_tiles() -> None:
    model = tiny_model("gemma2")
    with pytest.raises(ConfigError, match="array.rows=5.*sliding window of 8"):
        aimc.convert(model, replace(machine(), array=Array(window=60, rows=5)))


def test_hardware_does_not_run_backwards() -> None:
    model, ids = quiet(), tokens()
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="forwards in time"):
        cache.wait(-1.0)
    assert [b - a for a, b in pairwise(layer.arrays.now for layer in cache.gain_cell_layers)] == [0.0]


def test_a_decoded_token_walks_over_no_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers on arrays are looked for when a text begins; a large model has thousands of modules."""
    model = converted()
    cache = GainCellCache(model)
    with torch.no_grad():
        model(torch.ones(1, 3, dtype=torch.long), past_key_values=cache, use_cache=True)
        walks, walk = [], torch.nn.Module.named_modules

        def counted(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
            walks.append(type(self).__name__)
            return walk(self, *args, **kwargs)

        monkeypatch.setattr(torch.nn.Module, "named_modules", counted)  # what modules() walks with, too
        for _ in range(5):
            model(torch.ones(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)
    assert cache.n_written == 8 and walks == []


def test_layers_that_changed_between_two_texts_are_found() -> None:
    """peft puts copies in place of layers that the decoder remembers."""
    model = converted(hardware=replace(machine(), noise=Noise()))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=4, do_sample=False)
        for block in model.model.layers:
            block.self_attn.gain_cell = copy.deepcopy(block.self_attn.gain_cell)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), expected)
        cache = GainCellCache(model)
        model(ids, past_key_values=cache, use_cache=True)
        assert cache.n_written == 8


def test_bytes_of_all_layers():
    """Far below a digital cache of the same window, in which a number has four."""
    model = converted(hardware=replace(machine(), noise=Noise(), array=Array(window=32, rows=8)))
    cache = GainCellCache(model)
    assert cache.n_bytes == 0
    model(torch.arange(5)[None], past_key_values=cache)
    arrays = [layer.arrays for layer in cache.gain_cell_layers]
    digital = sum(2 * 4 * of.n_kv_heads * 32 * of.head_size for of in arrays)
    assert len(arrays) == 2 and digital / 4 < cache.n_bytes < digital
