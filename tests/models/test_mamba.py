"""Mamba and Mamba-2 by transformers: what it says of itself holds here, and arrays have nothing to do in it."""

from __future__ import annotations

import copy
import functools
import json

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import aimc
from aimc import presets
from train.errors import RunError
from train.pretrained import load_digital

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "mamba": lambda: transformers.MambaConfig(**COMMON, state_size=8),
    "mamba2": lambda: transformers.Mamba2Config(
        **COMMON, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8
    ),
}


@functools.cache
def tiny(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def ids(length: int = 20) -> torch.Tensor:
    return torch.randint(3, 64, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", CONFIGS)
def test_generation_is_the_whole_text(family: str) -> None:
    model = tiny(family)
    usual = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(ids(), eos_token_id=None, **usual)
    with torch.no_grad():
        whole = model(out.sequences, use_cache=False).logits
    torch.testing.assert_close(torch.stack(out.logits, dim=1), whole[:, 19:-1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_padding_on_the_left_changes_nothing(family: str) -> None:
    """With biases, which alone make something of the zeros that padding is: in a fresh model they are none."""
    model, tokens, mask = copy.deepcopy(tiny(family)), ids(12), torch.ones(2, 12, dtype=torch.long)
    for name, parameter in model.named_parameters():
        if "conv1d" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    tokens[1, :5] = mask[1, :5] = 0
    with torch.no_grad():
        padded = model(tokens, attention_mask=mask, use_cache=False).logits[1:, 5:]
        alone = model(tokens[1:, 5:], use_cache=False).logits
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_arrays_have_nothing_to_do(family: str) -> None:
    with pytest.raises(ValueError, match=f"model_type='{family}'.*cannot go onto gain-cell arrays"):
        aimc.convert(tiny(family), presets.gain_cell_cmos())


@pytest.mark.parametrize("family", CONFIGS)
def test_it_has_a_perplexity(family: str) -> None:
    assert 40 < float(aimc.perplexity(tiny(family), ids(40)[0], context=16, stride=16)) < 400


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("state-spaces/mamba-130m", "state-spaces/mamba-130m-hf"),
        ("state-spaces/mamba-2.8b", "state-spaces/mamba-2.8b-hf"),
        ("state-spaces/mamba2-130m", "AntonV/mamba2-130m-hf"),
    ],
)
def test_the_authors_layout_gets_the_name_of_the_other(name: str, other: str) -> None:
    with pytest.raises(ValueError, match=rf"layout of mamba_ssm.*give {other}$"):
        aimc.load_pretrained(name)
    with pytest.raises(RunError, match=rf"^model.source={name}.*{other}") as error:
        load_digital(name)
    assert "\n" not in str(error.value)


def test_a_folder_in_that_layout_is_known_by_its_config(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 768, "n_layer": 24, "vocab_size": 50277}))
    with pytest.raises(ValueError, match="config.json has d_model and n_layer.* state-spaces/mamba-130m-hf"):
        aimc.load_pretrained(tmp_path)
