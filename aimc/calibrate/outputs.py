"""A start by gradient, layer by layer: each attention block learns to give what the digital model's gives.

One pass of the digital model trains every layer: as soon as a block has computed, the converted model's block gets the
same input and takes a step towards the same output. So no layer waits for another, and one layer's graph is held at a
time. Source of the idea: RADLADS (D. Goldstein et al., arXiv 2505.03005) and LoLCATs (M. Zhang et al., arXiv
2410.10254).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from aimc.calibrate.blocks import paired_blocks
from aimc.calibrate.observation import Batches
from aimc.calibrate.output_report import OutputMatching
from aimc.calibrate.output_training import Trainer, Training, lost
from aimc.calibrate.output_variance import measured
from aimc.calibrate.text import checked_batches, n_tokens, ranks_for, rows_of
from aimc.models.modes import evaluating
from aimc.models.ranks import ALONE, Ranks

MIN_FALL = 0.01
"""Share by which the error has to fall from one stretch of `patience` steps to the next for training to go on."""


def match_outputs(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batches: Batches,
    *,
    steps: int = 80,
    minutes: float | None = None,
    learning_rate: float = 3e-3,
    scaler_learning_rate: float = 1e-2,
    own_stream: float = 0.0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = False,
    ranks: Ranks = ALONE,
) -> OutputMatching:
    """Train the attention blocks of a converted model, each by itself, to give the outputs of its digital origin.

    Every layer on arrays gets the hidden states and arguments that the reference's attention block gets, and is trained
    to give what that block gives behind its output projection: squared error over the power of the target, AdamW, half
    a cosine. Trained are the parameters of these blocks that require a gradient and that no other module shares, and
    nothing else. Nothing is dropped out; noise is as the hardware has it. Start from :func:`aimc.initialise_scalers`,
    and go on with training of the whole model.

    Args:
        model: converted, with weights of 32 bits; it changes in place.
        reference: the digital model it was converted from, on the same device.
        batches: token ids `[B, T]`, or the keyword arguments of the model's forward, with an `attention_mask` where
            there is padding. All are read once, in an order drawn from `seed`, then all again.
        steps: batches trained on; every layer takes one step on each.
        minutes: wall-clock time of the steps: learning rates fall by the clock then, and training ends with it, or
            after `steps` where that is sooner; not with `own_stream`. None: steps alone.
        learning_rate: first one of the projections; on the shipped model 2e-3 and 3e-3 do equally well, 1e-3 is slower,
            and 6e-3 and above do damage.
        scaler_learning_rate: first one of the parameters of the layer on arrays.
        own_stream: share of the steps, the last ones, in which the blocks read the model's own hidden states as they
            arrive, and learn what the whole decoder layer then lacks to end with the reference's. Such a step takes
            about twice as long.
        weight_decay: AdamW's.
        max_grad_norm: each layer's gradient is clipped to this norm.
        patience: stop as soon as the mean error of this many steps is not lower by :data:`MIN_FALL` than that of as
            many before, or go on to the own stream if that is still to come; None: make all steps.
        seed: of the order of the batches, and of noise. Torch's global random state is put back.
        progress: show a bar on a terminal.
        ranks: processes that share the rows of each batch; each must call this with the same arguments, and ends with
            the same model, up to rounding that of one process. Hardware with noise is not shared: each does it all.

    Returns:
        Errors and explained variance per layer and head before and after, both on the first batch, and the curve.

    Raises:
        ValueError: a model that is not converted, a reference that is or that has another architecture, no batch, rows
            of one token, token ids that are not in the vocabulary, settings out of range, or an error that is no longer
            finite.
    """
    training = Training(
        steps=steps,
        learning_rate=learning_rate,
        scaler_learning_rate=scaler_learning_rate,
        own_stream=own_stream,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        patience=patience,
        minutes=minutes,
    )
    blocks = paired_blocks(model, reference)
    text = checked_batches(batches, reference)
    started = time.perf_counter()
    trainer = Trainer(model, reference, blocks, training, ranks_for(ranks, model, text))
    report = OutputMatching()
    with evaluating(model), evaluating(reference), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        report.layers = measured(reference, blocks, text[0])
        _train(trainer, text, seed, report, progress)
        for of_layer, after in zip(report.layers, measured(reference, blocks, text[0]), strict=True):
            of_layer.error_after, of_layer.explained_after = after.error_before, after.explained_before
            if not math.isfinite(of_layer.error_after):
                raise lost("after the last step", of_layer.layer, of_layer.error_after)
    report.seconds = time.perf_counter() - started
    return report


def _train(trainer: Trainer, text: list[dict[str, Tensor]], seed: int, report: OutputMatching, progress: bool) -> None:
    training, order = trainer.training, _rounds(len(text), seed)
    phases = (range(training.own_from), range(training.own_from, training.steps))
    with tqdm(total=training.steps, desc="matching", unit="step", disable=None if progress else True) as bar:
        for phase in phases:
            errors: list[float] = []
            for step in phase:
                batch = text[next(order)]
                errors.append(trainer.step(step, rows_of(batch, trainer.ranks)))
                report.history.append(errors[-1])
                report.n_tokens += n_tokens(batch)
                bar.set_postfix(error=f"{errors[-1]:.3f}", refresh=False)
                bar.update()
                if training.minutes is not None and trainer.share(step + 1) == 1.0:
                    break
                if _is_level(errors, training.patience) and step != phase[-1]:
                    report.stopped_early = True
                    break
            if phase is phases[0] and phases[1]:
                report.own_stream_from = report.steps


def _is_level(errors: list[float], patience: int | None) -> bool:
    """Whether the error no longer falls."""
    if patience is None or len(errors) < 2 * patience:
        return False
    return sum(errors[-patience:]) > (1 - MIN_FALL) * sum(errors[-2 * patience : -patience])


def _rounds(n: int, seed: int) -> Iterator[int]:
    """The numbers below n in random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).tolist()
