"""Figures of cost say what they show; how they look was looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

import aimc
from aimc import plot, presets
from aimc.circuit import DigitalBaseline, ModelShape, attention_cost, model_cost, sensitivity
from aimc.circuit.cost.attention import Cost
from aimc.circuit.cost.slots import slot_cost

SHAPE, HARDWARE = ModelShape(), presets.gain_cell_cmos()


def test_energy_breakdown_stacks_to_the_total() -> None:
    head = attention_cost(SHAPE, HARDWARE).head
    softmax = attention_cost(SHAPE, presets.with_softmax(HARDWARE)).head
    axes = aimc.plot.cost.energy_breakdown({"sigmoid": head, "softmax": softmax}).axes[0]
    heights = [sum(bar.patches[i].get_height() for bar in axes.containers) for i in (0, 1)]
    assert heights == pytest.approx([head.energy_j.total, softmax.energy_j.total])
    texts = [text.get_text() for text in axes.texts]
    assert "6.15 nJ" in texts and "3.64 nJ" in texts
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "score ADCs" in legend and "refresh" not in legend
    assert "per token and head" in axes.get_title()


@pytest.mark.parametrize(
    "cost",
    [
        attention_cost(SHAPE, presets.gain_cell_normalised()),
        attention_cost(SHAPE, presets.for_pretrained(HARDWARE)),
        attention_cost(SHAPE, replace(HARDWARE, position_gain=True)),
        slot_cost(replace(SHAPE, rotary=True), presets.with_softmax(HARDWARE)),
    ],
    ids=["normaliser", "norms", "position", "slots"],
)
def test_every_part_is_drawn(cost: Cost) -> None:
    axes = aimc.plot.cost.energy_breakdown({"design": cost}).axes[0]
    assert sum(bar.patches[0].get_height() for bar in axes.containers) == pytest.approx(cost.energy_j.total)
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {k for k, v in cost.energy_j.items() if v}


def test_scopes_are_not_mixed() -> None:
    cost = attention_cost(SHAPE, HARDWARE)
    with pytest.raises(ValueError, match=r"\['head', 'model'\]"):
        plot.cost.energy_breakdown({"a": cost, "b": cost.head})
    with pytest.raises(ValueError, match="costs of 0 designs"):
        plot.cost.energy_breakdown({})


def test_tornado_has_the_largest_on_top() -> None:
    figure = plot.cost.sensitivity_tornado(sensitivity(SHAPE, HARDWARE), most=4)
    energy, latency, area = figure.axes
    assert [text.get_text() for text in energy.get_yticklabels()] == [
        "routing_energy_j",
        "pulse_max_s",
        "read_energy_qk_j",
        "read_pulse_s",
    ]
    assert [len(axes.patches) for axes in (energy, latency, area)] == [4, 4, 4]
    assert energy.patches[0].get_width() == pytest.approx(0.5922, abs=1e-3) and energy.patches[3].get_width() < 0
    colours = {patch.get_label(): patch.get_facecolor() for patch in figure.legends[0].get_patches()}
    assert (
        colours["derived"] == energy.patches[0].get_facecolor()
        and colours["assumed"] == area.patches[0].get_facecolor()
    )


def test_amdahl_draws_what_is_known() -> None:
    unknown = DigitalBaseline(name="CPU", attention_energy_j=None, attention_latency_s=1e-3, source="measured")
    gains = model_cost(SHAPE, HARDWARE, baselines=[unknown, DigitalBaseline.estimated(SHAPE, 1024)]).gains
    figure = plot.cost.amdahl(gains)
    energy, latency = figure.axes
    assert [text.get_text() for text in energy.texts].count(" not known") == 3
    assert " not known" not in [text.get_text() for text in latency.texts]
    starred = [text.get_text() for text in latency.texts if text.get_text().endswith("*")]
    assert len(starred) == 2, (
        "the CPU's rest is estimated; the digital machine brings its own, and attention alone has none"
    )
    widths = [bar.get_width() for bar in latency.containers[0]]
    assert widths == pytest.approx([1e-3 / 780e-9, gains[1].attention_latency])
    assert [text.get_text() for text in energy.get_yticklabels()] == ["CPU", "digital machine"]
