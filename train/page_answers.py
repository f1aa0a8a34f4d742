"""The answers of a study in a sentence each: what stands at the top of a page."""

from __future__ import annotations

from typing import Any

from aimc.circuit.cost.report import si

from .page_words import short_path
from .study_tables import circuit_words, percent, size_words, tolerance_words

Results = dict[str, Any]


def headlines(study: Results) -> list[str]:
    """The answers in a sentence each."""
    results, told = study["results"], []
    ranking = measured(results, "sensitivity")
    if ranking and ranking["rows"]:
        first = ranking["rows"][0]
        told.append(
            f"{first['label'].capitalize()} ({first['size']}) costs most: {percent(first['alone'])} perplexity alone;"
            f" everything together {percent(ranking['rise'])}."
        )
    curves = measured(results, "tolerance")
    tight = [(curve, tolerance) for curve in curves or () for tolerance in curve["tolerances"][:1] if tolerance["size"]]
    if tight and ranking:
        by_cost = [row["name"] for row in ranking["rows"]]
        curve, tolerance = min(tight, key=lambda pair: by_cost.index(pair[0]["name"]))
        told.append(
            f"For +{100 * tolerance['rise']:g} % perplexity, {curve['label']} may be"
            f" {tolerance_words(curve, tolerance)}; it is {size_words(curve, curve['own'])}."
        )
    circuits = measured(results, "specification")
    if circuits:
        told.append(cheapest_words(circuits))
    layers = measured(results, "layers")
    if layers and layers["ranking"]:
        worst, skip = layers["ranking"][0], layers["skip_layers"]
        rest = (
            "not even all layers digital are enough"
            if skip is None
            else f"keep digital: {', '.join(f'layer {at}' for at in skip)}"
        )
        rest = "no layer has to stay digital" if skip == [] else rest
        told.append(
            f"Layer {worst['layer']} minds its arrays most ({worst['kl']['value']:.3g} nat a token); for a budget of"
            f" +{100 * layers['budget']:g} % {rest}."
        )
    return told


def measured(results: Results, part: str) -> Any:
    """A part's results; None where there are none."""
    found = results.get(part)
    return None if isinstance(found, dict) and "error" in found else found


def cheapest_words(found: Results) -> str:
    """Which circuit is the cheapest within the budget, or that none is."""
    budget = f"+{100 * found['budget']:g} %"
    if found["cheapest"] is None:
        best = min(found["circuits"], key=lambda circuit: circuit["rise"]["value"], default=None)
        least = "" if best is None else f"; the best of them costs {percent(best['rise'])}"
        return f"None of {len(found['circuits'])} circuits is within {budget}{least}."
    circuit = found["circuits"][found["cheapest"]]
    built = ", ".join(
        f"{short_path(path)} {words}"
        for path, words in zip(circuit["values"], circuit_words(circuit["values"]), strict=True)
    )
    energy = si(circuit["energy_j"], "J")
    return f"Cheapest circuit within {budget}: {energy} a token ({built}), {percent(circuit['rise'])}."
