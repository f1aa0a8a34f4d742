"""The figure of a characterisation: every panel has its curves, and nothing to draw is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aimc.evaluate.characterise import Characterisation, CostEstimate, Phase, Point
from aimc.evaluate.characterise.estimates import MACHINES
from aimc.evaluate.characterise.operators import CLASSES, PRODUCT, SCAN
from aimc.evaluate.characterise.roofline import Roofline
from aimc.plot import characterisation


def point(model: str, length: int, seconds: float) -> Point:
    times = dict.fromkeys(CLASSES, 0.0) | {PRODUCT: seconds / 2, SCAN: seconds / 2}
    phase = Phase(flops=1e9, bytes_moved=1e8, host_s=times, device_s=dict.fromkeys(CLASSES, 0.0), profiled_s=seconds)
    sizes = {"weights_bytes": 1000, "activations_bytes": length, "kv_bytes": 10 * length, "state_bytes": 0}
    return Point(
        model=model,
        weights="random",
        length=length,
        first_token_s=seconds,
        token_s=seconds / 10,
        prompt=phase,
        token=phase,
        **sizes,
    )


def found() -> Characterisation:
    points = [point("one", n, n * 1e-3) for n in (256, 1024)] + [point("two", n, 1.0) for n in (256, 1024)]
    points.append(Point(model="two", weights="random", length=4096, not_run="not run (needs 3 GB)"))
    estimates = [
        CostEstimate(
            model="one", machine=machine, length=n, token_s=1e-4, token_j=1e-3 * n, first_token_s=0.1, mixing_j=1e-6
        )
        for machine in MACHINES
        for n in (256, 1024)
    ]
    roofline = Roofline(flops_per_s=1e10, bytes_per_s=1e9)
    return Characterisation(points=points, estimates=estimates, roofline=roofline)


def test_six_panels() -> None:
    figure = characterisation(found(), title="a machine")
    first, token, memory, energy, classes, roofline = figure.axes
    assert len(first.lines) == len(token.lines) == 2 + 3 + 1, "measured, estimated, and a mark at what was not run"
    assert len(memory.lines) == 2 + 2 + 1, "the peak and the cache of each"
    assert len(energy.lines) == 3 + 1 and "(estimated)" in energy.get_title()
    assert [label.get_text().split("\n")[0] for label in classes.get_yticklabels()] == ["one", "one", "two", "two"]
    assert len(roofline.lines) == 2 * 4 + 1
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"one (random weights)", "two (random weights)", PRODUCT, SCAN} <= set(labels)
    assert sum(label.startswith("cost model: ") for label in labels) == 3


def test_what_was_not_run_does_not_choose_the_scale() -> None:
    flat = found()
    flat.estimates = [replace(estimate, token_j=1e-3) for estimate in flat.estimates]
    assert characterisation(flat).axes[3].get_yscale() == "linear"


def test_nothing_to_draw() -> None:
    nothing = Characterisation(points=[Point(model="one", weights="random", length=8, not_run="not run (needs 9 s)")])
    with pytest.raises(ValueError, match="raise point_s or memory_gb"):
        characterisation(nothing)
