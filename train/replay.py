"""`python -m train.replay FOLDER`: a step that was saved as a spike (`train/spikes.py`), done again: its loss, the
sequences and the parameters behind it, and what the arrays did."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from aimc.evaluate.chips import noise_of
from aimc.evaluate.clipping import clip_fractions
from aimc.hardware import Noise
from aimc.models.arrays import has_arrays, set_chip, set_draws
from aimc.models.manifest import damage_of

from .command import run_command
from .dropout import dropout
from .errors import RunError
from .files import read_object
from .models import load_any
from .resume import last_intact, step_of
from .spikes import BATCH, COMMAND, FACTS, WEIGHTS
from .tables import terminal

SHOWN = 5
"""Sequences and parameters that are named."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(slots=True)
class Replayed:
    """What a step came to."""

    losses: Tensor
    """Cross-entropy in nat of each sequence, in the order of the step."""
    gradient_norm: float
    gradients: dict[str, float]
    """Norm of the gradient by parameter."""

    @property
    def loss(self) -> float:
        """Mean over the sequences."""
        return float(self.losses.mean())


def replay(model: PreTrainedModel, batch: dict[str, Tensor], facts: dict[str, Any]) -> Replayed:
    """Do a step again, up to its gradient, under the noise and on the chip that it met; with its dropout too, if that
    was drawn on the CPU of one process.

    Args:
        model: with the weights from before the step, to be the same.
        batch: `input_ids` `[passes, sequences, tokens]` and `random`, torch's state.
        facts: of the step.
    """
    noise = None if facts["noise"] is None else Noise(**facts["noise"])
    device, precision = model.device, AUTOCAST.get(facts["precision"])
    losses = []
    model.train()
    model.zero_grad()
    with torch.random.fork_rng(), noise_of(model, noise), dropout(model, facts.get("dropout", True)):
        torch.set_rng_state(batch["random"])
        if facts["chip"] is not None:
            set_chip(model, facts["chip"])
        for number, ids in enumerate(batch["input_ids"].to(device)):
            if has_arrays(model):
                set_draws(model, facts["noise_seed"], number * len(ids))
            with torch.autocast(device.type, precision) if precision else nullcontext():
                logits = model(input_ids=ids, use_cache=False).logits.float()
            of_tokens = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
            losses.append(of_tokens.mean(dim=1))
            (losses[-1].mean() / len(batch["input_ids"])).backward()
    gradients = {name: float(x.grad.norm()) for name, x in model.named_parameters() if x.grad is not None}
    whole = sum(norm**2 for norm in gradients.values()) ** 0.5
    return Replayed(torch.cat(losses).detach().cpu(), whole, gradients)


def opened(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and batch of a spike.

    Raises:
        RunError: there is none, or it is damaged.
    """
    facts = read_object(folder / FACTS)
    if facts is None or (damage := damage_of(folder)) is not None:
        what = "no saved step there" if facts is None else f"damaged ({damage})"
        raise RunError(f"{folder}: {what}; give a folder such as …/spikes/finetune/step-0000120")
    try:
        return facts, load_file(folder / BATCH)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder / BATCH}: cannot be read ({error}); the step cannot be done again") from error


def model_of(folder: Path, facts: dict[str, Any], named: str | None) -> tuple[PreTrainedModel, str]:
    """The model to do the step with, and what it is.

    Raises:
        RunError: none is left.
    """
    if named is not None:
        return load_any(named), named
    if (folder / WEIGHTS).is_dir():
        return load_any(str(folder / WEIGHTS)), "those of the step itself"
    before = facts["steps_before"]
    point = last_intact(Path(facts["points"]), terminal(), until=before)
    if point is None:
        raise RunError(
            f"{folder}: no point to resume from is left of before this step; name a model with --model FOLDER, or train"
            " with trainer.spike_weights=true, which saves the weights too"
        )
    return load_any(str(point)), f"{point}, {before - step_of(point)} steps before"


def show(folder: Path, named: str | None) -> None:
    """Do a saved step again and say what it comes to."""
    facts, batch = opened(folder)
    model, weights = model_of(folder, facts, named)
    model.to(PartialState().device)  # type: ignore[arg-type]
    found = replay(model, batch, facts)
    lines = [
        f"step {facts['steps_before'] + 1} of stage {facts['stage']}: loss {facts['loss']}, usually"
        f" {facts['usual_loss']}; gradient norm {facts['gradient_norm']}, usually {facts['usual_gradient_norm']}",
        f"weights: {weights}",
        f"again: loss {found.loss:.6g}, gradient norm {found.gradient_norm:.6g}"
        + (", of the text alone; training had a teacher too" if facts["has_teacher"] else ""),
    ]
    worst = found.losses.argsort(descending=True)[:SHOWN].tolist()
    lines += [f"  sequence {i}: loss {float(found.losses[i]):.4g}" for i in worst]
    largest = sorted(found.gradients.items(), key=lambda item: -item[1])[:SHOWN]
    lines += [f"  gradient of {name}: norm {norm:.4g}" for name, norm in largest]
    if has_arrays(model):
        model.eval()
        lines += [
            f"  at a bound, {name}: {share:.1%}"
            for name, share in clip_fractions(model, [batch["input_ids"][0, :2]]).items()
        ]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Do a step again that was saved as a spike.")
    parser.add_argument("folder", type=Path, help="of the step: <output_dir>/spikes/<stage>/step-<number>")
    parser.add_argument("--model", help="folder of a model to do it with; default: the weights from before the step")
    arguments = parser.parse_args()
    run_command(lambda: show(arguments.folder, arguments.model))


if __name__ == "__main__":
    main()
