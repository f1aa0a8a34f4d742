"""A start by gradient, layer by layer: each attention block learns to give what the digital model's gives.

One pass of the digital model trains every layer: as soon as a block has computed, the converted model's block gets the
same input and takes a step towards the same output. So no layer waits for another, and one layer's graph is held at a
time. Source of the idea: RADLADS (D. Goldstein et al., arXiv 2505.03005) and LoLCATs (M. Zhang et al., arXiv
2410.10254).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from aimc.calibrate.blocks import paired_blocks
from aimc.calibrate.observation import Batches
from aimc.calibrate.output_report import OutputMatching
from aimc.calibrate.output_training import Trainer, Training
from aimc.calibrate.output_variance import measured
from aimc.models.arrays import hardware_of
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
    text = _checked(batches, reference)
    started = time.perf_counter()
    trainer = Trainer(model, reference, blocks, training, _able(ranks, model, text))
    report = OutputMatching()
    with evaluating(model), evaluating(reference), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        report.layers = measured(reference, blocks, text[0])
        _train(trainer, text, seed, report, progress)
        for of_layer, after in zip(report.layers, measured(reference, blocks, text[0]), strict=True):
            of_layer.error_after, of_layer.explained_after = after.error_before, after.explained_before
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
                errors.append(trainer.step(step, _rows_of(batch, trainer.ranks)))
                report.history.append(errors[-1])
                report.n_tokens += _n_tokens(batch)
                bar.set_postfix(error=f"{errors[-1]:.3f}", refresh=False)
                bar.update()
                if training.minutes is not None and trainer.share(step + 1) == 1.0:
                    break
                if _is_level(errors, training.patience) and step != phase[-1]:
                    report.stopped_early = True
                    break
            if phase is phases[0] and phases[1]:
                report.own_stream_from = report.steps


def _able(ranks: Ranks, model: PreTrainedModel, text: list[dict[str, Tensor]]) -> Ranks:
    """The processes, where a batch can be shared by them: noise is drawn for a whole one."""
    is_noisy = bool(hardware_of(model).noise.active())
    return ALONE if is_noisy or any(len(batch["input_ids"]) < ranks.n for batch in text) else ranks


def _rows_of(batch: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    return {name: x[ranks.number :: ranks.n] for name, x in batch.items()}


def _is_level(errors: list[float], patience: int | None) -> bool:
    """Whether the error no longer falls."""
    if patience is None or len(errors) < 2 * patience:
        return False
    return sum(errors[-patience:]) > (1 - MIN_FALL) * sum(errors[-2 * patience : -patience])


def _checked(batches: Batches, reference: PreTrainedModel) -> list[dict[str, Tensor]]:
    """The batches as keyword arguments, on the models' device.

    Raises:
        ValueError: none, rows of one token, or ids that are no tokens of the models.
    """
    device, vocab_size = next(reference.parameters()).device, reference.config.get_text_config(decoder=True).vocab_size
    text = [batch if isinstance(batch, dict) else {"input_ids": batch} for batch in batches]
    if not text:
        raise ValueError(
            "no batch was given, so there is nothing to match on; pass at least one batch of token ids [B, T]"
        )
    for batch in text:
        ids = batch["input_ids"]
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise ValueError(
                f"a batch has shape {list(ids.shape)}: rows of at least two tokens [B, T] are needed, for a single"
                " token attends to itself alone; give rows as long as the model will read"
            )
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"a batch has token ids from {int(ids.min())} to {int(ids.max())}, and the models know 0 to"
                f" {vocab_size - 1}, so the text is of another tokenizer; use the model's own"
            )
    return [{name: x.to(device) for name, x in batch.items()} for batch in text]


def _n_tokens(batch: dict[str, Tensor]) -> int:
    mask = batch.get("attention_mask")
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


def _rounds(n: int, seed: int) -> Iterator[int]:
    """The numbers below n in random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).tolist()
