"""The end-to-end gain with a measured machine: its attention from the baseline case, its whole token from the decoding
case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aimc.circuit import DigitalBaseline, ModelCost, ModelShape, model_cost
from benchmarks.case import DIGITAL, Result
from benchmarks.cases import BASELINE, DECODING
from benchmarks.comparison import MEASURED, fastest, rows_of
from benchmarks.settings import Settings


def measured_model(results: Sequence[Result], settings: Settings, where: Mapping[str, Any]) -> ModelCost | None:
    """GPT-2 of these settings: attention on arrays and this machine's own rest, against this machine alone, a single
    sequence.

    The rest is the time of a whole token less that of attention in all layers, so the comparison mixes no two machines.
    The digital
    attention is the fastest implementation in the model's precision. Energy stays unknown: the decoding case does not
        meter it.

    Returns:
        None where a run has not measured both cases at B=1 in one precision, or where attention alone took longer than
        the whole token: then one of them was disturbed.
    """
    tokens = [
        r
        for r in results
        if r.case == DECODING and r.window == settings.window and r.shapes.get("batch") == 1 and not r.failed
    ]
    steps = [
        row
        for row in fastest(rows_of(results, settings, where))
        if row.kind == MEASURED and row.batch == 1 and tokens and row.dtype == tokens[0].dtype
    ]
    if not tokens or not steps:
        return None
    attention_s = settings.layers * steps[0].step_s
    rest_s = tokens[0].median_s[DIGITAL] - attention_s
    if rest_s <= 0:
        return None
    baseline = DigitalBaseline(
        name=f"{steps[0].machine}, {steps[0].dtype}",
        attention_energy_j=None,
        attention_latency_s=attention_s,
        rest_latency_s=rest_s,
        source=f"measured: cases {BASELINE!r} and {DECODING!r}",
    )
    shape = ModelShape(
        layers=settings.layers,
        query_heads=settings.heads,
        kv_heads=settings.heads,
        head_size=settings.head_size,
        hidden=settings.heads * settings.head_size,
        mlp_width=4 * settings.heads * settings.head_size,
        vocabulary=settings.vocabulary,
    )
    return model_cost(shape, settings.hardware(settings.window, backend="auto"), baselines=[baseline])
