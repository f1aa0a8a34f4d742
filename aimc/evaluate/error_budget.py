"""Budget of error: what attention on gain cells costs, what weights on static tiles cost, and what both cost
together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.ageing import retention
from aimc.evaluate.perplexity import Perplexity, perplexity
from aimc.hardware import Noise
from aimc.models.conversion import convert
from aimc.models.hook import is_digital
from aimc.static.config import Static
from aimc.static.programming import DAY_S
from aimc.static.tiles import calibrate_input_ranges, computing_digitally, has_static, require_static, static_layers

ROWS = ("digital", "only attention analog", "only static weights analog", "both")
"""Rows of the budget, in order."""


def error_budget(
    digital: PreTrainedModel,
    analog: PreTrainedModel,
    tokens: Tensor,
    batches: Sequence[Tensor],
    *,
    static: Any = "pcm",
    since_programming_s: float = DAY_S,
    chips: int = 3,
    nonideality: Noise | None = None,
    seed: int = 0,
    on_result: Callable[[str, Perplexity], None] | None = None,
    **rule: Any,
) -> dict[str, Perplexity]:
    """Held-out perplexity with no part analog, with each, and with both; no weight is changed, programmed tiles go back
    to their targets.

    Attention alone is the analog model with its linear layers computed digitally. Static weights alone are those of the
    digital model. A chip is a draw of the gain cells' non-idealities and one programming of the tiles, drifted with
    global compensation.

    Args:
        digital: the digital model.
        analog: attention on gain cells; with static tiles (trained for both), or without: then it is put on tiles as it
            is.
        tokens: int64 `[N]`.
        batches: token ids `[B, T]` each, to set the input ranges of tiles that no training has set.
        static: tiles for a model that has none, as in :func:`aimc.convert`; one that has some keeps them, and the
            digital model gets the same.
        since_programming_s: static clock, in second.
        chips: how many.
        nonideality: of the gain cells; None: the hardware's own.
        seed: of the first chip.
        on_result: called after each row.
        rule: `context`, `stride`, `batch_size` of :func:`aimc.perplexity`.

    Returns:
        Rows by name, see :data:`ROWS`.

    Raises:
        ValueError: a digital model that is not, or an analog one without gain cells.
    """
    if not is_digital(digital) or has_static(digital):
        raise ValueError(
            "the first model is to be the digital one, and it is converted; give the model before its conversion"
        )
    if is_digital(analog):
        raise ValueError("the second model has no attention on gain cells; call aimc.convert(model, hardware) first")
    tiles = static_of(analog) if has_static(analog) else static
    drifted = {"times_s": [since_programming_s], "compensation": [True], "programmings": chips, "seed": seed, **rule}

    def rows() -> Iterator[tuple[str, Perplexity]]:
        yield ROWS[0], perplexity(digital, tokens, **rule)
        with computing_digitally(analog) if has_static(analog) else nullcontext():
            yield ROWS[1], perplexity(analog, tokens, chips=chips, nonideality=nonideality, seed=seed, **rule)
        yield ROWS[2], retention(on_tiles(digital, tiles, batches), tokens, **drifted)[0].perplexity
        whole = analog if has_static(analog) else on_tiles(analog, tiles, batches)
        yield ROWS[3], retention(whole, tokens, nonideality=nonideality, **drifted)[0].perplexity

    measured = {}
    for name, value in rows():
        measured[name] = value
        if on_result is not None:
            on_result(name, value)
    return measured


def on_tiles(model: PreTrainedModel, static: Any, batches: Sequence[Tensor]) -> PreTrainedModel:
    """A copy of the model with its linear layers on tiles and their input ranges measured on `batches`; no training."""
    whole = copy.deepcopy(model)
    convert(whole, None, static=static)
    calibrate_input_ranges(whole, batches)
    return whole


def static_of(model: PreTrainedModel) -> Static:
    """What puts another model of the same architecture on the same tiles.

    Raises:
        ValueError: no static tiles.
    """
    require_static(model)
    configs = {name: copy.deepcopy(layer.tiles[0].rpu_config) for name, layer in static_layers(model)}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(layer): name for name, layer in static_layers(model)}
    return Static(
        rpu_config=next(iter(configs.values())),
        layers=[name for name in configs if name not in (names.get(id(head)), names.get(id(embedding)))],
        overrides=configs,
        head=id(head) in names,
        embeddings=id(embedding) in names,
    )
