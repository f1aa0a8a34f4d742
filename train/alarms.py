"""What goes wrong while a model trains that nobody would see in the loss: counters that are full, scalers that run
away, gradients of which clipping leaves next to nothing. Each is told once a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.models.arrays import gain_cell_layers, hardware_of, has_arrays
from aimc.nn.attention import PARTS

from .sharding import whole
from .tables import warned

COUNTERS = {
    "clip/A": "sub-tile counters (A)",
    "clip/S": "score converters (S)",
    "clip/S_full": "charge-to-pulse circuits (S)",
    "clip/normaliser": "normaliser counters",
}
"""What counts, by the name of its clip fraction."""

FITTED = ("clip/A", "clip/normaliser")
"""Those whose full scales may be fitted, and clip for a reason then."""
MOST_FULL = 0.1
"""Share of full reads above which a normaliser's counter is told of; less was not seen to cost anything."""


def tell_full_normaliser(model: PreTrainedModel, fractions: dict[str, float], say: Callable[[Any], None]) -> None:
    """Say where a normaliser's counter is full too often, by a model's clip fractions; not where full scales of heads
    were fitted, which clip for a reason."""
    if (full := fractions.get("normaliser", 0.0)) > MOST_FULL and not _are_fitted(model):
        hardware = hardware_of(model)
        say(
            f"  {warned(f'normaliser counters are full in {full:.1%} of their reads')} and divide by too little;"
            f" raise hardware.normaliser.full_scale={hardware.normaliser.full_scale:g} and train so"
        )


class Alarms:
    """Watches what is logged.

    Args:
        model: as training begins; drift is counted from there, also after an interruption.
        clip: share of full reads above which a counter is told of.
        drift: factor above which a scaler is.
        gradient: factor above which the usual norm of a gradient is, over what it is clipped to.
        say: gets a line for each.
    """

    def __init__(
        self, model: PreTrainedModel, *, clip: float, drift: float, gradient: float, say: Callable[[Any], None]
    ) -> None:
        self.clip, self.drift, self.gradient, self.say = clip, drift, gradient, say
        self._start = {key: scale.clone() for key, scale in _scales(model).items()}
        self._told: set[str] = set()

    def look(self, model: PreTrainedModel, metrics: dict[str, float]) -> dict[str, float]:
        """Tell of what is out of bounds; returns, for the log, the largest factor by which a head's scaler has changed,
        by part."""
        are_fitted = _are_fitted(model)
        for name, words in COUNTERS.items():
            if are_fitted and name in FITTED:
                continue
            if (full := metrics.get(name, 0.0)) > self.clip:
                self._tell(name, f"{words} are full in {full:.1%} of their reads, and what is above is lost")
        drifts: dict[str, float] = {}
        for (layer, part), scale in _scales(model).items():
            changes = (scale / self._start[layer, part]).abs().log().abs().exp()
            change, head = float(changes.max()), int(changes.argmax())
            drifts[f"drift/{part}"] = max(change, drifts.get(f"drift/{part}", 1.0))
            if change > self.drift:
                self._tell(
                    f"drift/{part}",
                    f"the {part} scaler of layer {layer}, head {head} has changed by a factor of {change:.1f}; a lower"
                    " learning_rates.scalers holds it",
                )
        return drifts

    def look_at_gradients(self, model: PreTrainedModel, usual: float | None, clipped_to: float) -> None:
        """Tell where most gradients are far longer than what is left of them; `usual` is the median of their norms,
        None while that is not known."""
        if usual is not None and usual > self.gradient * clipped_to:
            words = f"the gradient's norm is {usual:.3g} in most steps, and is clipped to {clipped_to:g}: a few tokens"
            words += " decide where the model goes"
            normaliser = hardware_of(model).normaliser if has_arrays(model) else None
            if normaliser is not None and normaliser.is_on and not normaliser.least:
                words += "; where heads are divided by next to nothing, hardware.normaliser.least=0.25 mends it"
            self._tell("gradient", words)

    def _tell(self, name: str, words: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self.say(f"  {warned(words)}")


@torch.no_grad()
def _scales(model: PreTrainedModel) -> dict[tuple[int, str], Tensor]:
    """Gains of each layer's heads `[H]`, on the CPU."""
    return {
        (layer.layer, part): whole(layer.scaler(part).scale.detach()).float().cpu()
        for _, layer in gain_cell_layers(model)
        for part in PARTS
    }


def _are_fitted(model: PreTrainedModel) -> bool:
    return any(layer.has_fitted_counters for _, layer in gain_cell_layers(model))
