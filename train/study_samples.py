"""What a model writes on several machines, side by side: the same start of a text, gone on with greedily."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

import aimc
from aimc.evaluate.chips import chips_of
from aimc.evaluate.study.effects import ideal
from aimc.evaluate.study.points import Point
from aimc.models.modes import evaluating

from .pretrained import vocabulary_of

if TYPE_CHECKING:
    from aimc.evaluate.study.bench import Bench
    from aimc.hardware import Hardware

PROMPT_TOKENS = 32
"""Of the text, from its start, that each machine goes on from."""


def samples(bench: Bench, machine: Hardware, n_tokens: int, checkpoint: str) -> dict[str, Any]:
    """The start of the text, and what the first chip of each machine makes of it.

    Args:
        bench: model and text.
        machine: with every effect at its stated size.
        n_tokens: that are written; no more than the model has positions for.
        checkpoint: whose tokenizer it is.
    """
    tokenizer = vocabulary_of(checkpoint, "checkpoint").tokenizer
    prompt = bench.tokens[: min(PROMPT_TOKENS, bench.context // 2)]
    n_tokens = min(n_tokens, bench.context - len(prompt))
    machines = {
        "ideal arrays": ideal(machine),
        "its own hardware, no noise": replace(machine, noise=aimc.Noise()),
        f"all effects, chip {bench.chips[0]}": machine,
    }
    rows = []
    for label, hardware in machines.items():
        with bench.on(Point(hardware=hardware)) as model, evaluating(model), torch.no_grad():
            for _ in chips_of(model, 1, None, bench.chips[0]):
                generate: Any = model.generate  # transformers leaves open what it is
                written = generate(
                    prompt[None],
                    attention_mask=torch.ones_like(prompt[None]),
                    max_new_tokens=n_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
                )
        rows.append({"label": label, "text": tokenizer.decode(written[0, len(prompt) :])})
    return {"prompt": tokenizer.decode(prompt), "rows": rows}
