"""Pictures of runs are drawn from what the runs wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.pictures import ROUTES, routes


def written(folder: Path, rows: dict[str, dict[str, dict[str, object]]]) -> Path:
    (folder / "recipes.json").write_text(json.dumps({"rows": rows}))
    return folder


def test_routes_are_means_over_seeds_with_intervals(tmp_path: Path) -> None:
    """Of two seeds, at the points that both have."""
    seeds = {"1": {"curve": [[1e6, 90.0], [2e6, 80.0]]}, "2": {"curve": [[1e6, 94.0], [2e6, 80.0], [3e6, 70.0]]}}
    (axes,) = routes(written(tmp_path, dict.fromkeys(ROUTES, seeds))).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(ROUTES.values())
    bars = axes.containers[0]
    assert bars[0].get_xydata().tolist() == [[1.0, 92.0], [2.0, 80.0]]
    (low, high), *_ = (segment[:, 1] for segment in bars[2][0].get_segments())
    assert high - low == pytest.approx(2 * 12.706204736 * 2)  # Student's t of one degree of freedom, standard error 2


def test_a_row_without_its_curve_is_named(tmp_path: Path) -> None:
    rows: dict[str, dict[str, dict[str, object]]] = {name: {"1": {"curve": [[1e6, 9.0]]}} for name in ROUTES}
    missing = list(ROUTES)[-1]
    for broken in ({"1": {"perplexity": {}}}, None):
        found = {name: of_seeds for name, of_seeds in (rows | {missing: broken}).items() if of_seeds is not None}
        with pytest.raises(SystemExit, match=f"no curve of '{missing}'.*--curve-every"):
            routes(written(tmp_path, found))
