"""A pretrained model as the pipeline reads it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from train.pretrained import load_digital


def test_the_activation_of_gpt2_is_read_as_one_operation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=16, n_embd=32, n_layer=2, n_head=2)).eval()
    model.save_pretrained(tmp_path)
    read = load_digital(str(tmp_path)).eval()
    assert [x.config.activation_function for x in (model, read)] == ["gelu_new", "gelu_pytorch_tanh"]
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(read(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-6)
