"""A start without a gradient: the output projections that make most of what the heads on arrays give.

Each attention block ends in a linear map, and the map that brings its output closest to the digital block's is a least
squares problem, solved layer after layer while one pass of the model goes by: so each layer makes up for what the
layers before it have made of the text. Source of the idea: layer-wise reconstruction in compression after training
(I. Hubara et al., arXiv 2006.10518; E. Frantar and D. Alistarh, arXiv 2208.11580).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aimc.calibrate.blocks import Block, Call, output_of, paired_blocks, run_decoder, watching
from aimc.calibrate.observation import Batches
from aimc.calibrate.output_report import Errors
from aimc.calibrate.output_variance import Projection, projecting
from aimc.calibrate.text import checked_batches, n_tokens, ranks_for, rows_of
from aimc.models.modes import evaluating
from aimc.models.ranks import ALONE, Ranks

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Strengths that are tried, as shares of the mean power of what arrives at the projection."""
HELD_OUT = 0.25
"""Share of the sequences that choose among them."""


@dataclass(slots=True, kw_only=True)
class FittedLayer:
    """One layer's output projection."""

    layer: int
    """Its number in the model, in which skipped layers count."""
    ridge: float
    """The strength chosen; inf: the projection is as it was."""
    error_before: float
    """Squared error of the block's output over the power of the reference's, on the sequences that were held out."""
    error_after: float
    """The same with a projection fitted to the others; the model's is fitted to all, once the strength is chosen."""


@dataclass(slots=True, kw_only=True)
class ProjectionFit(Errors):
    """How the fit went."""

    layers: list[FittedLayer] = field(default_factory=list)
    n_tokens: int = 0
    """Tokens it was fitted to."""
    seconds: float = 0.0

    def __str__(self) -> str:
        head = (
            f"output projections of {len(self.layers)} layers fitted to {self.n_tokens} tokens in {self.seconds:.0f} s:"
            f" mean relative error {self.error_before:.3f} → {self.error_after:.3f} on sequences held out"
        )
        rows = [f"{of.layer:>5}  {of.error_before:>7.3f} → {of.error_after:<7.3f} {of.ridge:>7g}" for of in self.layers]
        return "\n".join([head, "layer  relative error      ridge", *rows])


def fit_projections(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    batches: Batches,
    *,
    ridge: float | None = None,
    ranks: Ranks = ALONE,
) -> ProjectionFit:
    """Set the output projections of a converted model to what brings its attention closest to the digital model's.

    The model reads the text once. When a block's heads have computed, its projection W (and bias) becomes
    argmin Σ|W·h − y|² + λ·P·|W − W₀|², with h what arrives there, y what the reference's block gives on the same text,
    W₀ the weights so far and P the mean power of a feature of h; then the pass goes on with what the block now gives.
    Nothing else changes. Non-idealities that are on are in h, and the fit takes them into account. Start from
    :func:`aimc.initialise_scalers`; gradient steps (:func:`aimc.match_outputs`, training) go on from here.

    Args:
        model: converted, with weights of 32 bits; its projections change in place.
        reference: the digital model it was converted from, on the same device.
        batches: token ids `[B, T]`, or the keyword arguments of the model's forward, all of one T. They pass through
            the model at once, and what each block of the reference gives is kept: `n_layers · tokens · features`
            numbers. A few thousand tokens are enough for a few hundred features.
        ridge: λ; None: per layer, the one of :data:`RIDGES` that does best on the last quarter of the sequences when
            fitted to the others, or no change where none helps.
        ranks: processes that share the sequences; each must call this with the same arguments, and all end with the
            same weights.

    Returns:
        Errors per layer before and after, on the sequences held out, and the strengths chosen.

    Raises:
        ValueError: a model that is not converted, a reference that is or that has another architecture, token ids that
            are not in the vocabulary, fewer than two sequences or sequences of different lengths, a ridge out of range,
            or a block that does not end in a linear map that may be changed.
    """
    if ridge is not None and not 0 < ridge < math.inf:
        raise ValueError(f"ridge={ridge}: must be a finite number above 0; 0.01 is usual, None chooses")
    blocks = paired_blocks(model, reference)
    text = _as_one(checked_batches(batches, reference))
    started = time.perf_counter()
    result = ProjectionFit(n_tokens=n_tokens(text))
    ranks, count = ranks_for(ranks, model, [text]), len(text["input_ids"])
    held = torch.arange(count) >= count - max(1, round(HELD_OUT * count))
    text, held = rows_of(text, ranks), held[ranks.number :: ranks.n]
    mask = text.get("attention_mask")
    wanted: dict[int, Tensor] = {}

    def remember(i: int, call: Call) -> None:
        wanted[i] = call.output

    def check(i: int, call: Call, found: Projection) -> Tensor:
        _check_projection(blocks[i], found, call.output)
        return call.output

    def fit(i: int, call: Call, found: Projection) -> Tensor:
        assert found.module is not None  # checked
        fitted = _Fitting(found, wanted.pop(i), mask, held, ranks).fit(blocks[i].layer.layer, ridge)
        result.layers.append(fitted)
        return found.module(found.heads)

    with evaluating(model), evaluating(reference), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)  # of noise, where the hardware has it: the same on all processes
        with _replacing(blocks, check):  # before anything changes
            run_decoder(model, {name: x[:1] for name, x in text.items()})
        with watching([block.teacher for block in blocks], remember):
            run_decoder(reference, text)
        with _replacing(blocks, fit):
            run_decoder(model, text)
    result.seconds = time.perf_counter() - started
    return result


def _as_one(text: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All sequences in one batch.

    Raises:
        ValueError: sequences of different lengths, or only one.
    """
    lengths = sorted({batch["input_ids"].shape[1] for batch in text})
    if len(lengths) > 1:
        raise ValueError(
            f"the batches hold sequences of {', '.join(map(str, lengths))} tokens, and all pass through the model at"
            " once; cut them to one length"
        )
    if sum(len(batch["input_ids"]) for batch in text) < 2:
        raise ValueError("one sequence alone leaves none to hold out; give at least two, four or more are usual")
    names = {name for batch in text for name in batch}
    if missing := [name for name in names if any(name not in batch for batch in text)]:
        raise ValueError(f"some batches have {missing[0]} and others not; give it with all, or with none")
    return {name: torch.cat([batch[name] for batch in text]) for name in names}


def _check_projection(block: Block, found: Projection, output: Tensor) -> None:
    where = f"layer {block.layer.layer}"
    if not isinstance(found.module, (nn.Linear, Conv1D)):
        raise ValueError(
            f"{where}: its attention ends in {type(found.module).__name__}, and only a linear map can be fitted by"
            " least squares; use match_outputs"
        )
    for name, changed in found.module.named_parameters():
        if not any(changed is parameter for parameter in block.projections):
            raise ValueError(
                f"{where}: the {name} of its output projection may not be changed (requires_grad is off, or another"
                " module shares it); call requires_grad_(True) on the model first, or use match_outputs"
            )
    expected = found.module(found.heads)
    if not torch.allclose(expected, output, rtol=1e-3, atol=1e-4 * float(output.abs().max()), equal_nan=True):
        raise ValueError(f"{where}: its attention gives something else than its output projection; use match_outputs")


@contextmanager
def _replacing(blocks: list[Block], fit: Callable[[int, Call, Projection], Tensor]) -> Iterator[None]:
    """Inside: `fit(number in blocks, what the model's block gave, its projection)` as soon as it has computed, and what
    it returns takes the place of that."""

    def hook(i: int, found: Projection) -> Callable[..., Any]:
        def after(module: nn.Module, args: tuple[Any, ...], returned: Any) -> Any:
            output = fit(i, Call({}, output_of(returned)), found)
            found.heads = None  # no longer needed, and large
            return (output, *returned[1:]) if isinstance(returned, tuple) else output

        return after

    with ExitStack() as stack:
        for i, block in enumerate(blocks):
            found = stack.enter_context(projecting(block.student))
            stack.callback(block.student.register_forward_hook(hook(i, found)).remove)
        yield


@dataclass(slots=True)
class _Sums:
    """What least squares needs of some tokens, in float64: h·hᵀ, h·yᵀ and |y|², summed over them and the processes."""

    inputs: Tensor
    both: Tensor
    targets: Tensor

    @classmethod
    def of(cls, h: Tensor, y: Tensor, ranks: Ranks) -> _Sums:
        """Of `[n, inputs]` and `[n, features]`."""
        h, y = h.double(), y.double()
        return cls(*(ranks.total(x) for x in (h.T @ h, h.T @ y, y.square().sum())))

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(self.inputs + other.inputs, self.both + other.both, self.targets + other.targets)

    def error(self, weight: Tensor) -> float:
        """Squared error of `h @ weight` over the power of the targets."""
        error = self.targets - 2 * (weight * self.both).sum() + (weight * (self.inputs @ weight)).sum()
        return float(error / self.targets.clamp(min=torch.finfo(torch.float64).tiny))

    def solved(self, weight: Tensor, ridge: float, has_bias: bool) -> Tensor:
        """The `[inputs, features]` that errs least, drawn to `weight`; a bias, the last row, is not drawn to it."""
        power = self.inputs.diagonal()[:-1] if has_bias else self.inputs.diagonal()
        floor = torch.finfo(torch.float64).tiny  # heads that are silent altogether
        drawn = torch.full_like(self.inputs.diagonal(), max(ridge * float(power.mean()), floor))
        if has_bias:
            drawn[-1] = 0.0
        missing = self.both - self.inputs @ weight
        return weight + torch.linalg.solve(self.inputs + drawn.diag(), missing)


class _Fitting:
    """One layer's least squares."""

    def __init__(self, found: Projection, wanted: Tensor, mask: Tensor | None, held: Tensor, ranks: Ranks) -> None:
        assert found.module is not None and found.heads is not None  # the block has computed
        assert isinstance(found.module, (nn.Linear, Conv1D))
        self.module, self.has_bias = found.module, found.module.bias is not None
        heads = found.heads
        if self.has_bias:
            heads = torch.cat([heads, torch.ones_like(heads[..., :1])], dim=-1)
        real = torch.ones(heads.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
        self.fitted, self.held = (
            _Sums.of(heads[rows], wanted[rows], ranks)
            for rows in ((real & part[:, None]).to(heads.device) for part in (~held, held))
        )

    def fit(self, layer: int, ridge: float | None) -> FittedLayer:
        """Choose the strength, and set the projection."""
        before = self.weight
        errors = {math.inf: self.held.error(before)}
        for strength in RIDGES if ridge is None else (ridge,):
            errors[strength] = self.held.error(self.fitted.solved(before, strength, self.has_bias))
        chosen = min(errors, key=errors.__getitem__) if ridge is None else ridge
        if chosen < math.inf:
            self.set(self.fitted.plus(self.held).solved(before, chosen, self.has_bias))
        return FittedLayer(layer=layer, ridge=chosen, error_before=errors[math.inf], error_after=errors[chosen])

    @property
    def weight(self) -> Tensor:
        """`[inputs, features]` in float64, with the bias as its last row."""
        weight = self.module.weight.detach().double()
        weight = weight if isinstance(self.module, Conv1D) else weight.T
        return torch.cat([weight, self.module.bias.detach().double()[None]]) if self.has_bias else weight

    def set(self, weight: Tensor) -> None:
        """Write it to the module."""
        if self.has_bias:
            weight, bias = weight[:-1], weight[-1]
            self.module.bias.copy_(bias)
        self.module.weight.copy_(weight if isinstance(self.module, Conv1D) else weight.T)
