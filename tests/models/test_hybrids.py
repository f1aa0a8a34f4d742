"""Hybrids: attention on arrays, state spaces and convolutions as they are, and one cache for both."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

import aimc
from aimc import presets
from aimc.hardware import Array, Hardware
from aimc.models.arrays import gain_cell_layers
from aimc.models.h3 import H3Config
from aimc.models.striped_hyena import StripedHyenaConfig

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CONFIGS = {
    "lfm2": lambda: transformers.Lfm2Config(
        **COMMON,
        num_hidden_layers=3,
        layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=False,
    ),
    "jamba": lambda: transformers.JambaConfig(
        **COMMON,
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        mamba_d_state=8,
        mamba_d_conv=3,
    ),
    "bamba": lambda: transformers.BambaConfig(
        **COMMON,
        num_hidden_layers=3,
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=8,
    ),
    "zamba2": lambda: transformers.Zamba2Config(
        **COMMON,
        num_hidden_layers=4,
        mamba_d_state=8,
        n_mamba_heads=8,
        chunk_size=8,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        num_mem_blocks=1,
    ),
    "falcon_h1": lambda: transformers.FalconH1Config(
        **COMMON,
        num_hidden_layers=2,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=8,
        mamba_n_groups=1,
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **COMMON,
        num_hidden_layers=4,
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "h3": lambda: H3Config(**COMMON, num_hidden_layers=3, attention_layers=[1], state_size=8),
    "stripedhyena": lambda: StripedHyenaConfig(
        **{name: size for name, size in COMMON.items() if name != "num_key_value_heads"},
        num_hidden_layers=4,
        proj_groups=2,
        state_size=4,
    ),
}
ATTENTION = {
    "lfm2": [1],
    "jamba": [1, 3],
    "bamba": [1],
    "zamba2": [1, 3],
    "falcon_h1": [0, 1],
    "qwen3_next": [3],
    "h3": [1],
    "stripedhyena": [1, 3],
}
STATES = {
    "h3": ["0.mixer", "2.mixer"],
    "stripedhyena": ["0.filter", "2.filter"],
    "lfm2": ["0.conv", "2.conv"],
    "jamba": ["0.mamba", "2.mamba"],
    "bamba": ["0.mamba", "2.mamba"],
    "zamba2": ["0.mamba", "1.mamba_decoder.mamba", "2.mamba", "3.mamba_decoder.mamba"],
    "falcon_h1": ["0.mamba", "1.mamba"],
    "qwen3_next": ["0.linear_attn", "1.linear_attn", "2.linear_attn"],
}
"""Inside the list of layers: what stays digital."""
NO_LEVELS = dict.fromkeys(("input_levels", "storage_levels", "score_levels", "probability_levels", "readout_levels"))


@functools.cache
def _made(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def digital(family: str) -> PreTrainedModel:
    return copy.deepcopy(_made(family))


def ids(length: int = 20) -> torch.Tensor:
    return torch.randint(3, 64, (2, length), generator=torch.Generator().manual_seed(1))


def machine(leaky: bool = False) -> Hardware:
    base = replace(presets.gain_cell_cmos() if leaky else presets.ideal(), array=Array(window=64, rows=8))
    return presets.with_softmax(base, **NO_LEVELS)


def converted(family: str, leaky: bool = False) -> tuple[PreTrainedModel, aimc.models.ConversionReport]:
    model = digital(family)
    report = aimc.convert(model, machine(leaky))
    aimc.calibrate_ranges(model, digital(family), [ids()])
    return model, report


most_families = pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in ("lfm2", "jamba", "qwen3_next") else pytest.mark.slow) for name in CONFIGS],
)
"""Convolutions, Mamba and the delta rule; `make slow` does the others."""


@pytest.mark.parametrize("family", CONFIGS)
def test_attention_goes_onto_arrays_and_the_rest_stays(family: str) -> None:
    model, report = converted(family)
    assert [layer.layer for _, layer in gain_cell_layers(model)] == ATTENTION[family]
    others = sorted(set(range(model.config.num_hidden_layers)) - set(ATTENTION[family]))
    noted = any(f"layers {', '.join(map(str, others))} have no attention" in note for note in report.notes)
    stack = {"h3": "backbone.layers", "stripedhyena": "backbone.blocks"}.get(family, "model.layers")
    assert report.digital == [f"{stack}.{name}" for name in STATES[family]]
    assert all(f"  {name}\n" in f"{report}\n" for name in report.digital)
    assert noted == bool(others) and not any("not among the tested" in note for note in report.notes)
    with torch.no_grad():
        expected = digital(family)(ids(), use_cache=False).logits
        torch.testing.assert_close(model(ids(), use_cache=False).logits, expected, atol=1e-5, rtol=1e-4)
    model.train()(ids(), labels=ids(), use_cache=False).loss.backward()
    for name, _ in gain_cell_layers(model):
        attention = model.get_submodule(name.rpartition(".")[0])
        projections = [module for module in attention.children() if isinstance(module, torch.nn.Linear)]
        assert projections and all(projection.weight.grad.abs().max() > 0 for projection in projections)


@pytest.mark.parametrize("family", CONFIGS)
def test_generation_with_a_mixed_cache_is_the_whole_text(family: str) -> None:
    model, _ = converted(family, leaky=True)
    out = model.generate(ids(), max_new_tokens=6, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        whole = model(out[:, :-1], use_cache=False).logits
        assert torch.equal(out[:, -6:], whole[:, -6:].argmax(-1))
        cache = aimc.GainCellCache(model)
        first = model(out[:, :12], past_key_values=cache, use_cache=True).logits
        rest = []
        for t in range(12, 20):
            # without them, Bamba's own forward counts positions from 0 in every pass; `generate` gives them to all
            at = {"position_ids": torch.tensor([[t]])} if family == "bamba" else {}
            rest.append(model(out[:, t : t + 1], past_key_values=cache, use_cache=True, **at).logits)
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole[:, :20], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", CONFIGS)
def test_padding_on_the_left_changes_nothing(family: str) -> None:
    """Padding moves a text to other sub-tiles, whose converters clip what calibration has not seen: here there is one
    sub-tile, and calibration sees the text."""
    tokens, mask = ids(12), torch.ones(2, 12, dtype=torch.long)
    tokens[1, :5] = mask[1, :5] = 0
    usual = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    usual |= {"output_logits": True, "return_dict_in_generate": True}
    expected = digital(family).generate(tokens, attention_mask=mask, **usual)
    model = digital(family)
    aimc.convert(model, replace(machine(), array=Array(window=64, rows=64)))
    aimc.calibrate_ranges(model, digital(family), [expected.sequences[:1], expected.sequences[1:, 5:]])
    padded = model.generate(tokens, attention_mask=mask, **usual)
    alone = model.generate(tokens[1:, 5:], **usual)
    assert torch.equal(padded.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(padded.logits), torch.stack(expected.logits), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.stack(padded.logits)[:, 1:], torch.stack(alone.logits), atol=1e-5, rtol=1e-4)


@most_families
def test_rows_of_a_mixed_cache_move_together(family: str) -> None:
    """Arrays and states: what the rows would be had they come in that order."""
    model, _ = converted(family)
    following = torch.tensor([[5], [6], [7], [8]])
    with torch.no_grad():
        for change, rows in (
            (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
            (lambda cache: cache.batch_select_indices(torch.tensor([1, 0])), [1, 0]),
            (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
        ):
            logits = []
            for tokens, then in ((ids(9)[rows], None), (ids(9), change)):
                cache = aimc.GainCellCache(model)
                model(tokens, past_key_values=cache, use_cache=True)
                if then is not None:
                    then(cache)
                logits.append(model(following[: len(rows)], past_key_values=cache, use_cache=True).logits)
            torch.testing.assert_close(logits[1], logits[0], atol=1e-6, rtol=1e-4)


@most_families
def test_tokens_cannot_be_taken_back_out_of_a_mixed_cache(family: str) -> None:
    model, _ = converted(family)
    cache = aimc.GainCellCache(model)
    with torch.no_grad():
        model(ids(9), past_key_values=cache, use_cache=True)
    cache.crop(0)
    with pytest.raises(NotImplementedError, match="taken back out of gain cells"):
        cache.crop(-2)
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("family", CONFIGS)
def test_saved_loaded_and_taken_back(family: str, tmp_path) -> None:
    model, _ = converted(family, leaky=True)
    model.save_pretrained(tmp_path)
    again = aimc.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids(), use_cache=False).logits, model(ids(), use_cache=False).logits)
        aimc.to_digital(again)
        expected = digital(family)(ids(), use_cache=False).logits
        assert torch.equal(again.eval()(ids(), use_cache=False).logits, expected)


def test_layers_are_skipped_by_their_number_in_the_model() -> None:
    model = digital("jamba")
    aimc.convert(model, machine(), skip_layers=[1])
    assert [layer.layer for _, layer in gain_cell_layers(model)] == [3]
    with pytest.raises(ValueError, match="has no layer 7; its layers are 0 to 3"):
        aimc.convert(digital("jamba"), machine(), skip_layers=[7])
    with pytest.raises(ValueError, match="leaves none"):
        aimc.convert(digital("jamba"), machine(), skip_layers=[1, 3])


def test_an_attention_block_that_is_called_twice_is_refused_by_name() -> None:
    """Zamba2's own blocks are copies with tied weights; here it is one module."""
    model = digital("zamba2")
    model.model.layers[3].shared_transformer = model.model.layers[1].shared_transformer
    with pytest.raises(ValueError, match=r"zamba2.*layers\.1\..*several layers share, and arrays belong to one layer"):
        aimc.convert(model, machine())
