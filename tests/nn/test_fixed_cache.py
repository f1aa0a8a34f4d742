"""A fixed cache: one compiled graph does for every token of a converted model."""

from __future__ import annotations

import copy

import pytest
import torch

import aimc
from aimc.models.arrays import gain_cell_layers, set_generator
from aimc.nn.cache import GainCellCache
from tests.nn.test_cache import W, machine
from tests.tiny_models import tiny_model

PROMPT, LENGTH = 5, W + 3


@pytest.mark.slow
@torch._dynamo.config.patch(error_on_recompile=True)
@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_graph_of_the_model_does_for_every_token(family: str) -> None:
    torch._dynamo.reset()
    model = tiny_model(family)
    aimc.convert(model, machine())
    set_generator(model, torch.Generator().manual_seed(1))
    ids = torch.randint(32, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    usual = GainCellCache(model)
    model(ids[:, :PROMPT], past_key_values=usual)
    same = {id(layer.machine): layer.machine for _, layer in gain_cell_layers(model)}  # not a copy of the hardware
    fixed = copy.deepcopy(usual, same)
    fixed.fix()

    def step(token: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return model(token, position_ids=position_ids, past_key_values=fixed).logits

    graph = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
    for t in range(PROMPT, LENGTH):
        token = ids[:, t : t + 1].clone()
        expected = model(token, past_key_values=usual).logits
        torch.testing.assert_close(graph(token, torch.tensor([[t]])), expected, atol=1e-4, rtol=1e-3)
    assert fixed.get_seq_length() == usual.get_seq_length() == LENGTH


@torch.no_grad()
def test_generate_goes_on_with_a_fixed_cache() -> None:
    model = tiny_model("gpt2")
    model.generation_config.eos_token_id = None
    aimc.convert(model, machine())
    set_generator(model, torch.Generator().manual_seed(1))
    ids = torch.randint(32, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    usual = GainCellCache(model)
    model(ids[:, :-1], past_key_values=usual)
    fixed = copy.deepcopy(usual)
    fixed.fix()
    texts = [model.generate(ids, past_key_values=c, max_new_tokens=6, do_sample=False) for c in (usual, fixed)]
    assert torch.equal(*texts)


def test_an_empty_cache_is_refused() -> None:
    model = tiny_model("gpt2")
    aimc.convert(model, machine())
    with pytest.raises(ValueError, match="prompt"):
        GainCellCache(model).fix()
