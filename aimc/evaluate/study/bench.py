"""The bench: a model, a text and a rule of measuring, on which one machine after another is measured, chip by chip."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.circuit.cost.shape import ModelShape
from aimc.evaluate.agreement import by_token
from aimc.evaluate.chips import chips_of, is_random
from aimc.evaluate.measurement import Measurement
from aimc.evaluate.perplexity import token_losses
from aimc.evaluate.study.draws import Draw, digest_of_tokens, draw_of
from aimc.evaluate.study.points import Point
from aimc.evaluate.tradeoff import moved, shape_of
from aimc.evaluate.windows import checked_tokens, window_of, windows_together
from aimc.hardware import Hardware
from aimc.models.arrays import gain_cell_layers, hardware_of, set_hardware
from aimc.models.modes import evaluating
from aimc.nn.attention import GainCellAttention

Trainer = Callable[[PreTrainedModel, Hardware], None]
"""Trains a converted model, in place, a few steps on a machine."""
FEWEST_STRETCHES = 16
"""That a text is cut into for its intervals, unless they would be shorter than:"""
SHORTEST_STRETCH = 64
"""Tokens: neighbours within a sentence or two are easy or hard together."""


@dataclass(slots=True)
class Bench:
    """A converted model on a text.

    Args:
        model: converted; it is measured as a copy and stays as it is.
        tokens: int64 `[N]`.
        measurement: windows, chips (their numbers are the same for every machine, so that differences are not noise)
            and how much of the text.
        name: of model and weights, such as a digest of its files; part of every key.
        batches: token ids `[B, T]` each, to match the scalers of points that are `moved`; none: they are not matched.
        train: for points that are `trained`; None: none may be.
        training: what it does, for the key.
    """

    model: PreTrainedModel
    tokens: Tensor
    measurement: Measurement
    name: str = ""
    batches: Sequence[Tensor] = ()
    train: Trainer | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    _text: str = ""
    """Digest of the tokens."""
    _trial: PreTrainedModel | None = None
    _reference: PreTrainedModel | None = None

    def __post_init__(self) -> None:
        self.tokens = checked_tokens(self.model, self.tokens)[: self.measurement.tokens]
        hardware_of(self.model)  # raises where it is not converted
        self._text = digest_of_tokens(self.tokens)

    @property
    def own(self) -> Hardware:
        """The machine that the model is on."""
        return hardware_of(self.model)

    @property
    def chips(self) -> list[int]:
        """Numbers of the chips."""
        return list(range(self.measurement.seed, self.measurement.seed + self.measurement.chips))

    def is_random(self, machine: Hardware) -> bool:
        """Whether one chip differs from another: the gain cells of a machine, or the model's static tiles."""
        return is_random(self.model, machine.noise)

    @property
    def shape(self) -> ModelShape:
        """Whose attention costs energy."""
        return shape_of(self.model)

    @property
    def heads(self) -> dict[int, int]:
        """Query heads of each layer on arrays."""
        return {layer.layer: len(layer.query_scaler.scale) for _, layer in gain_cell_layers(self.model)}

    @property
    def context(self) -> int:
        """Tokens that the model reads together."""
        return window_of(self.model, self.measurement)[0]

    @property
    def stretch(self) -> int:
        """Tokens of the text that count as one draw: the context; of a short text less, because an interval over a
        handful of draws says little."""
        return min(self.context, max(SHORTEST_STRETCH, len(self.tokens) // FEWEST_STRETCHES))

    def subject(self, point: Point) -> dict[str, Any]:
        """What is measured besides the machine: part of the key of every draw."""
        context, stride = window_of(self.model, self.measurement)
        about = {
            "model": self.name,
            "own": self.own.to_dict(),
            "text": self._text,
            "context": context,
            "stride": stride,
        }
        if self.stretch < context:
            about["stretch"] = self.stretch
        if point.moved:
            about["batches"] = [digest_of_tokens(batch) for batch in self.batches]
        if point.trained:
            about["training"] = dict(self.training)
        return about

    def draw(self, point: Point, chips: Sequence[int]) -> Iterator[tuple[int, Draw]]:
        """Measure a point on some chips, one after the other.

        Raises:
            ValueError: a machine that this model cannot be on, or training without anything that trains.
        """
        with self.on(point) as model:
            for chip in chips:
                started = time.perf_counter()
                if point.diverges:
                    _, kl, losses = self._against_reference(model, point, chip)
                else:
                    (losses,), kl = (
                        token_losses(model, self.tokens, replace(self.measurement, chips=1, seed=chip)),
                        None,
                    )
                yield chip, draw_of(losses, kl, self.stretch, time.perf_counter() - started)

    def _against_reference(self, model: PreTrainedModel, point: Point, chip: int) -> tuple[int, Tensor, Tensor]:
        """Divergence from the model with all its heads on `rest`, and losses, `[N − 1]` each."""
        if self._reference is None:
            self._reference = copy.deepcopy(self.model)
        set_hardware(self._reference, point.rest or self.own)
        context, stride = window_of(model, self.measurement)
        together = windows_together(model, context, self.measurement.batch_size)
        with evaluating(model), evaluating(self._reference):
            (rows,) = [
                by_token(model, self._reference, self.tokens, context, stride, together, chip)
                for _ in chips_of(model, 1, None, chip)
            ]
        kl, _, losses, _ = rows
        return chip, kl, losses

    @contextmanager
    def on(self, point: Point) -> Iterator[PreTrainedModel]:
        """A copy of the model on the point's machine."""
        if self._trial is None:
            self._trial = copy.deepcopy(self.model)
        model = self._trial
        with ExitStack() as stack:
            if point.trained:
                if self.train is None:
                    raise ValueError("this bench trains nothing; give it `train`, or points that are not trained")
                model = copy.deepcopy(self.model)
                set_hardware(model, point.hardware)
                self.train(model, point.hardware)
            elif point.moved:
                moved(model, self.model, self.own, replace(point.hardware), self.batches)
            else:
                set_hardware(model, point.hardware)
                _take_scalers(model, self.model)
            if point.analog is not None:
                stack.enter_context(mixed(model, point.analog, point.rest or self.own))
            yield model


def _take_scalers(trial: PreTrainedModel, source: PreTrainedModel) -> None:
    """What arrays learnt and were calibrated to, as far as the trial's machine has it too."""
    for (_, to), (_, given) in zip(gain_cell_layers(trial), gain_cell_layers(source), strict=True):
        to.load_state_dict(given.state_dict(), strict=False)


@contextmanager
def mixed(model: PreTrainedModel, analog: Mapping[int, Sequence[bool]], rest: Hardware) -> Iterator[None]:
    """Some query heads stay on the machine that the model is on, the others go onto `rest`; afterwards all are back.

    A layer of both kinds computes twice and takes from each its heads. A K/V head whose query heads are of both kinds
    is then on both machines.
    """
    handles, changed = [], []
    try:
        for _, layer in gain_cell_layers(model):
            heads = list(analog.get(layer.layer, [False] * len(layer.query_scaler.scale)))
            if all(heads):
                continue
            if any(heads):
                handles.append(_replace_heads(layer, heads, rest))
            else:
                changed.append((layer, layer.hardware))
                layer.hardware = rest
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, hardware in changed:
            layer.hardware = hardware


def _replace_heads(layer: GainCellAttention, analog: Sequence[bool], rest: Hardware) -> Any:
    """A hook that gives the heads that are not analog the output they have on `rest`."""
    other = copy.deepcopy(layer)
    other.hardware = rest
    kept = torch.tensor(list(analog), dtype=torch.bool)[None, :, None, None]

    def replace_output(_: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return torch.where(kept.to(output.device), output, other(*args, **kwargs))  # [B, H, T, D]

    return layer.register_forward_hook(replace_output, with_kwargs=True)
