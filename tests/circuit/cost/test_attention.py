"""The cost of attention: the published point, the sum of its parts, how each part grows, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from aimc import presets
from aimc.circuit import Cost, CostParameters, ModelShape, attention_cost
from aimc.circuit.cost import published
from aimc.circuit.cost.attention import PARTS
from aimc.circuit.cost.converters import converter_steps
from aimc.circuit.cost.parameters import BASES, basis_of, unit_of
from aimc.hardware import ConfigError, Converter, Hardware, Normaliser, Protection

SHAPE = ModelShape()


def hardware(
    *, window: int = 1024, rows: int = 64, input_levels: int = 16, storage_levels: int = 8, readout_levels: int = 32
) -> Hardware:
    """The published hardware with other sizes."""
    changed = presets.gain_cell_cmos()
    changed.array = replace(changed.array, window=window, rows=rows)
    changed.input_dac.n_levels, changed.storage_dac.n_levels, changed.readout.n_levels = (
        input_levels,
        storage_levels,
        readout_levels,
    )
    return changed


def layer(shape: ModelShape = SHAPE, parameters: CostParameters | None = None, **sizes: int) -> Cost:
    return attention_cost(shape, hardware(**sizes), parameters).layer


def ratios(before: Cost, after: Cost, quantity: str) -> dict[str, float]:
    """Part to after ÷ before, of the parts that cost anything."""
    old, new = getattr(before, quantity), getattr(after, quantity)
    return {name: round(new[name] / value, 12) for name, value in old.items() if value}


@pytest.mark.parametrize("preset", [presets.gain_cell_cmos, presets.gain_cell_linear, presets.published])
def test_published_point(preset: Callable[[], Hardware]) -> None:
    head = attention_cost(SHAPE, preset()).head
    energy = head.energy_j
    assert energy["first array"] == pytest.approx(1120e-12, rel=1e-9)
    assert energy["second array"] == pytest.approx(700e-12, rel=1e-9)
    assert energy["DACs"] + energy["writes"] == pytest.approx(330e-12, rel=1e-9)
    assert energy["counters"] + energy["digital adders"] + energy["routing and control"] == pytest.approx(
        4000e-12, rel=1e-9
    )
    assert energy.total == pytest.approx(6.15e-9, rel=1e-9)
    assert head.latency_s.total == pytest.approx(65e-9, rel=1e-9)
    assert head.area_m2.total == pytest.approx(0.5e-6, rel=1e-9)
    assert energy["pulse generators"] == energy["refresh"] == 0


def test_published_point_from_unit_numbers_by_hand() -> None:
    """The same counts, written down again without the model: D=64, W=1024, J=16; 15, 7 and 15 steps of 1 ns."""
    p, head = CostParameters(), attention_cost(SHAPE, hardware()).head
    assert p.clock_s == pytest.approx(1e-9)
    assert head.energy_j["DACs"] == pytest.approx((64 * 15 + 2 * 64 * 7) * p.dac_energy_j_per_step)
    assert head.energy_j["counters"] == pytest.approx(16 * 64 * 15 * 20e-15)
    assert head.energy_j["digital adders"] == pytest.approx(16 * 64 * 50e-15)
    assert head.energy_j["routing and control"] == pytest.approx((1024 + 16 * 64) * p.routing_energy_j)
    assert head.energy_j["writes"] == pytest.approx(128 * 17e-15)
    assert dict(head.latency_s) == pytest.approx(
        {
            "first array": 17.5e-9,
            "second array": 17.5e-9,
            "counters": 15e-9,
            "digital adders": 5e-9,
            "writes": 10e-9,
            "refresh": 0,
            "queue for shared arrays": 0,
        }
    )
    assert head.area_m2["first array"] == head.area_m2["second array"] == pytest.approx(65536e-12)
    assert all(value > 0 for value in (p.routing_energy_j, p.routing_area_m2, p.dac_energy_j_per_step)), (
        "a remainder is negative"
    )


def test_totals_are_sums_and_shares_add_up() -> None:
    shape = ModelShape(layers=3, query_heads=8, kv_heads=2)
    model = attention_cost(shape, hardware())
    for cost in (model, model.layer, model.head):
        for parts in (cost.energy_j, cost.latency_s, cost.area_m2):
            assert parts.total == pytest.approx(sum(parts.values()), rel=1e-12) and min(parts.values()) >= 0
    assert [name for name in PARTS if name in model.energy_j] == list(PARTS)
    assert (
        model.energy_j.total
        == pytest.approx(3 * model.layer.energy_j.total)
        == pytest.approx(24 * model.head.energy_j.total)
    )
    assert model.area_m2.total == pytest.approx(24 * model.head.area_m2.total)
    assert model.latency_s.total == pytest.approx(3 * model.head.latency_s.total)
    assert model.layer.head == model.head and model.head.head == model.head
    with pytest.raises(ValueError, match="does not know the whole layer"):
        model.head.layer  # noqa: B018


def test_doubling_layers() -> None:
    before, after = attention_cost(SHAPE, hardware()), attention_cost(ModelShape(layers=24), hardware())
    for quantity in ("energy_j", "latency_s", "area_m2"):
        assert set(ratios(before, after, quantity).values()) == {2}
    assert before.layer.energy_j == pytest.approx(after.layer.energy_j)


def test_doubling_heads() -> None:
    before, after = layer(), layer(ModelShape(query_heads=24, kv_heads=24))
    assert set(ratios(before, after, "energy_j").values()) == set(ratios(before, after, "area_m2").values()) == {2}
    assert after.latency_s == before.latency_s, "heads work in parallel"


def test_doubling_kv_heads() -> None:
    """Reads belong to query heads; writes, storage DACs and circuits to K/V heads; a group queues for its arrays."""
    before, after = layer(ModelShape(kv_heads=3)), layer(ModelShape(kv_heads=6))
    energy = ratios(before, after, "energy_j")
    step_j = CostParameters().dac_energy_j_per_step
    assert after.energy_j["DACs"] - before.energy_j["DACs"] == pytest.approx(3 * 2 * 64 * 7 * step_j)
    assert energy.pop("writes") == pytest.approx(2)
    del energy["DACs"]
    assert set(energy.values()) == {1}
    assert set(ratios(before, after, "area_m2").values()) == {2}
    read_s = 55e-9
    assert before.latency_s["queue for shared arrays"] == pytest.approx(3 * read_s)
    assert after.latency_s["queue for shared arrays"] == pytest.approx(1 * read_s)


def test_doubling_head_size() -> None:
    before, after = layer(), layer(ModelShape(head_size=128))
    energy, area = ratios(before, after, "energy_j"), ratios(before, after, "area_m2")
    assert energy.pop("routing and control") == pytest.approx(1.5), "pulses per slot stay, partial sums double"
    assert area.pop("routing and control") == area.pop("pulse generators") == pytest.approx(1.5)
    assert set(energy.values()) == set(area.values()) == {2}
    assert after.latency_s == before.latency_s


def test_doubling_window() -> None:
    before, after = layer(), layer(window=2048)
    energy, area = ratios(before, after, "energy_j"), ratios(before, after, "area_m2")
    for name in ("DACs", "writes"):
        assert energy.pop(name) == pytest.approx(1)
    assert area.pop("DACs") == pytest.approx(1)
    assert set(energy.values()) == set(area.values()) == {2}
    assert after.latency_s.total - before.latency_s.total == pytest.approx(1.25e-9), "one more level of the adder tree"


def test_doubling_rows() -> None:
    before, after = layer(), layer(rows=128)
    energy, area = ratios(before, after, "energy_j"), ratios(before, after, "area_m2")
    for name in ("counters", "digital adders"):
        assert energy.pop(name) == area.pop(name) == pytest.approx(0.5)
    assert (
        energy.pop("routing and control")
        == area.pop("routing and control")
        == area.pop("pulse generators")
        == pytest.approx(0.75)
    )
    assert set(energy.values()) == set(area.values()) == {1}
    assert before.latency_s.total - after.latency_s.total == pytest.approx(1.25e-9)


def test_doubling_input_steps() -> None:
    """16 levels are 15 steps, 31 levels are 30: twice the pulse at the same clock."""
    before, after = layer(), layer(input_levels=31)
    energy = ratios(before, after, "energy_j")
    assert energy.pop("first array") == pytest.approx(2)
    assert energy.pop("DACs") == pytest.approx((30 + 14) / (15 + 14))
    assert set(energy.values()) == {1}
    assert after.latency_s["first array"] - before.latency_s["first array"] == pytest.approx(15e-9)
    assert after.latency_s.total - before.latency_s.total == pytest.approx(15e-9)
    assert after.area_m2 == before.area_m2


def test_doubling_storage_steps() -> None:
    before, after = layer(), layer(storage_levels=15)
    energy = ratios(before, after, "energy_j")
    assert energy.pop("DACs") == pytest.approx((15 + 28) / (15 + 14))
    assert set(energy.values()) == {1}
    assert after.latency_s == before.latency_s


def test_doubling_readout_steps() -> None:
    before, after = layer(), layer(readout_levels=62)
    energy = ratios(before, after, "energy_j")
    assert energy.pop("counters") == pytest.approx(2)
    assert set(energy.values()) == {1}
    assert after.latency_s["counters"] == pytest.approx(30e-9)


def test_read_energy_follows_the_pulse() -> None:
    """A read energy is stated for `read_pulse_s`; a design with other pulses has it in proportion."""
    longer = CostParameters(pulse_max_s=30e-9)
    before, after = layer(), layer(parameters=longer)
    assert (
        ratios(before, after, "energy_j")["first array"]
        == ratios(before, after, "energy_j")["second array"]
        == pytest.approx(2)
    )
    assert after.latency_s.total - before.latency_s.total == pytest.approx(45e-9)
    own = CostParameters(pulse_max_s=30e-9, read_pulse_s=30e-9)
    assert layer(parameters=own).energy_j == pytest.approx(before.energy_j)


def test_window_fill() -> None:
    half = attention_cost(SHAPE, hardware(), window_fill=512)
    full = attention_cost(SHAPE, hardware())
    assert half.area_m2 == full.area_m2
    energy = ratios(full, half, "energy_j")
    assert energy.pop("DACs") == energy.pop("writes") == pytest.approx(1)
    assert set(energy.values()) == {0.5}
    few = attention_cost(SHAPE, hardware(), window_fill=1).head
    assert few.energy_j["counters"] == pytest.approx(64 * 15 * 20e-15), "one sub-tile is in use"
    assert few.latency_s["digital adders"] == 0
    assert attention_cost(SHAPE, hardware(), window_fill=1024) == full


def test_refresh() -> None:
    """Every cell anew each millisecond: a share of token time ÷ interval of writing all slots, in energy and in
    time."""
    p = CostParameters(refresh_interval_s=1e-3)
    head = attention_cost(SHAPE, hardware(), p).head
    share = 12 * 65e-9 / 1e-3
    assert head.energy_j["refresh"] == pytest.approx(share * 2 * 64 * 1024 * (17e-15 + 7 * p.dac_energy_j_per_step))
    assert head.latency_s["refresh"] == pytest.approx(share * 1024 * 10e-9)
    twice = attention_cost(SHAPE, hardware(), replace(p, refresh_interval_s=2e-3)).head
    assert twice.energy_j["refresh"] == pytest.approx(head.energy_j["refresh"] / 2)
    assert twice.energy_j["writes"] == head.energy_j["writes"]
    with pytest.raises(
        ValueError, match="refresh_interval_s=1e-05: writing 1024 slots one after another takes 10.2 µs"
    ):
        attention_cost(SHAPE, hardware(), replace(p, refresh_interval_s=1e-5))


def test_pipelining_shortens_the_queue_not_the_read() -> None:
    shape = ModelShape(kv_heads=3)
    one, many = (attention_cost(shape, hardware(), CostParameters(pipeline_depth=n)).layer for n in (1, 100))
    assert one.latency_s["queue for shared arrays"] == pytest.approx(3 * 55e-9)
    assert many.latency_s["queue for shared arrays"] == pytest.approx(3 * 17.5e-9), "no faster than the slowest stage"
    assert many.interval_s < one.interval_s == pytest.approx(one.latency_s.total)


def test_softmax_adds_its_circuits() -> None:
    plain = attention_cost(SHAPE, hardware()).head
    machine = presets.with_softmax(
        hardware(), input_levels=32, storage_levels=8, probability_levels=16, readout_levels=32
    )
    head = attention_cost(SHAPE, machine).head
    assert head.energy_j["score ADCs"] == pytest.approx(1024 * 256 * 10e-15)
    assert head.energy_j["digital softmax"] == pytest.approx(1024 * 3e-12)
    probability_dacs_j = 1024 * 15 * CostParameters().dac_energy_j_per_step
    assert head.energy_j["DACs"] == pytest.approx(plain.energy_j["DACs"] + probability_dacs_j)
    assert head.energy_j["first array"] == pytest.approx(plain.energy_j["first array"]), (
        "a signed converter of 32 levels has 15 steps"
    )
    assert head.latency_s["score ADCs"] == pytest.approx(8e-9) and head.latency_s["digital softmax"] == pytest.approx(
        32e-9
    )
    assert head.area_m2["score ADCs"] == pytest.approx(1024 * 500e-12)
    assert head.area_m2["pulse generators"] == pytest.approx(plain.area_m2["pulse generators"] / 2), (
        "no charge-to-pulse behind the first"
    )
    longer = replace(machine, probability_dac=Converter(n_levels=31))
    assert attention_cost(SHAPE, longer).head.energy_j["second array"] == pytest.approx(
        2 * head.energy_j["second array"]
    )


def test_protected_tokens_are_digital() -> None:
    machine = replace(hardware(), protection=Protection(n_sink=2, n_recent=14))
    head = attention_cost(SHAPE, machine).head
    assert head.energy_j["protected tokens"] == pytest.approx(16 * 2 * 64 * 1.5e-12)


def test_every_parameter_says_where_it_comes_from() -> None:
    for f in fields(CostParameters):
        assert basis_of(f.name) in BASES
        suffix = {"J": "_j", "s": "_s", "m²": "_m2"}.get(unit_of(f.name))
        assert suffix is None or suffix in f.name
    assert (
        basis_of("read_energy_qk_j") == "derived"
        and basis_of("pulse_max_s") == "published"
        and basis_of("cell_area_m2") == "assumed"
    )


def test_parameters_are_listed_with_their_basis() -> None:
    lines = str(CostParameters(write_energy_j=1e-15)).splitlines()
    assert len(lines) == 2 + len(fields(CostParameters))
    listed = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert listed["write_energy_j"] == ["1", "fJ", "given"] and listed["refresh_interval_s"] == ["off", "published"]


def test_published_levels_are_those_of_the_preset() -> None:
    preset = presets.gain_cell_cmos()
    levels = (preset.input_dac.n_levels, preset.storage_dac.n_levels, preset.readout.n_levels)
    assert levels == (published.INPUT_LEVELS, published.STORAGE_LEVELS, published.READOUT_LEVELS)
    assert (preset.array.window, preset.array.rows) == (published.WINDOW, published.ROWS)
    assert preset.leakage.token_time_s == pytest.approx(published.LAYERS * published.LATENCY_S)


def test_table_reads_well() -> None:
    text = str(attention_cost(SHAPE, hardware()).head)
    assert text.splitlines()[0].startswith("per token and head")
    assert "total                    6.15 nJ  100.0 %    65 ns  100.0 %     0.5 mm²  100.0 %" in text
    assert len({len(line) for line in text.splitlines() if "%" in line}) <= 3


@pytest.mark.parametrize("name", [f.name for f in fields(CostParameters)])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1"])
def test_bad_parameters_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        CostParameters(**{name: value})


def test_zero_is_refused_unless_it_switches_something_off() -> None:
    off = {f.name for f in fields(CostParameters) if f.metadata["off"]}
    for f in fields(CostParameters):
        if f.name in off and f.default is not None:
            assert getattr(CostParameters(**{f.name: 0.0}), f.name) == 0
        else:
            with pytest.raises(ValueError, match=f.name):
                CostParameters(**{f.name: 0.0})
    assert off == {
        *("write_energy_j", "pulse_generator_energy_j", "refresh_interval_s"),
        *("settle_latency_s", "adder_latency_s"),
    }


@pytest.mark.parametrize("fill", [0, -1, 1025, 0.5, True])
def test_bad_window_fill(fill: int) -> None:
    with pytest.raises(ValueError, match=r"window_fill=.*array.window=1024"):
        attention_cost(SHAPE, hardware(), window_fill=fill)


def test_ideal_converters_have_no_cost() -> None:
    with pytest.raises(ConfigError, match=r"hardware.input_dac.n_levels=None: .*gain_cell_cmos"):
        attention_cost(SHAPE, presets.ideal())
    with pytest.raises(ConfigError, match="score_adc"):
        attention_cost(SHAPE, presets.with_softmax(hardware(), score_levels=None))


def test_other_bad_counts() -> None:
    for name, value in (
        ("pulse_levels", 1),
        ("pulse_levels", 16.5),
        ("pipeline_depth", 1.5),
        ("batch", 0.5),
        ("softmax_lanes", 0.5),
    ):
        with pytest.raises(ValueError, match=name):
            CostParameters(**{name: value})


def test_converter_steps() -> None:
    assert converter_steps(Converter(n_levels=16), "x") == 15
    assert converter_steps(Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude"), "x") == 15
    assert converter_steps(Converter(n_levels=2, v_min=-1.0), "x") == 1
    assert converter_steps(Converter(n_levels=5, v_min=-1.0), "x") == 2  # -1, -½, 0, ½, 1
    assert converter_steps(Converter(n_levels=31, v_min=-1.0), "x") == 15
    assert converter_steps(Converter(n_levels=16, v_min=-0.5), "x") == 10, "those of the longer side"


def test_a_cost_says_that_cells_are_emulated_at_another_pace() -> None:
    published, slow = (attention_cost(SHAPE, on) for on in (hardware(), presets.with_softmax(hardware())))
    assert "step_latency_s" not in str(published)
    step_s = slow.layer.latency_s.total
    for scope in (slow, slow.layer, slow.head):
        assert f"leakage.step_latency_s={step_s:.2g}" in str(scope)
    still = presets.with_softmax(hardware())
    still.leakage.tau_s = None
    assert "step_latency_s" not in str(attention_cost(SHAPE, still))


def test_cells_of_a_slow_layer_are_rewritten_as_often_as_it_takes() -> None:
    slow, p = presets.with_softmax(hardware()), CostParameters(refresh_interval_s=1e-3)
    taken_s = SHAPE.layers * attention_cost(SHAPE, slow).layer.latency_s.total
    assert taken_s > 5 * slow.leakage.known_token_time_s()
    refresh_s = attention_cost(SHAPE, slow, p).layer.latency_s["refresh"]
    assert refresh_s == pytest.approx(taken_s / 1e-3 * 1024 * 10e-9)


def test_digital_share_is_the_published_65_percent() -> None:
    energy = attention_cost(SHAPE, hardware()).head.energy_j
    digital = sum(energy[name] for name in ("counters", "digital adders", "routing and control"))
    assert math.isclose(digital / energy.total, 0.65, abs_tol=0.001)
    assert published.DIGITAL_J == 4000e-12


def test_a_normaliser_is_one_more_column_and_a_division() -> None:
    p, plain = CostParameters(), attention_cost(SHAPE, hardware())
    column = Normaliser(is_on=True, full_scale=16.0, counter=Converter(n_levels=32))
    with_column = attention_cost(SHAPE, replace(hardware(), normaliser=column))
    extra = {name: x - plain.head.energy_j.get(name, 0.0) for name, x in with_column.head.energy_j.items()}
    assert {name for name, x in extra.items() if x} == {"normaliser column"}
    d, held, tiles = SHAPE.head_size, 1024, 16
    second = plain.head.energy_j["second array"] / d  # one column of it
    assert second == pytest.approx(held * p.read_energy_av_j)
    readout = 31 * p.counter_energy_j_per_step + p.adder_energy_j + p.routing_energy_j
    digital = p.table_energy_j + 2 * p.mac_energy_j + d * p.multiplication_energy_j
    assert extra["normaliser column"] == pytest.approx(second + tiles * readout + digital)
    area = with_column.head.area_m2["normaliser column"] / plain.head.area_m2["second array"]
    assert 1 / d < area < 10 / d  # its counters and routing are larger than its cells
    by_position = attention_cost(SHAPE, replace(hardware(), position_gain=True)).head.energy_j["position gain"]
    assert by_position == pytest.approx(p.table_energy_j + d * p.multiplication_energy_j)


def test_a_signed_query_takes_what_is_said() -> None:
    signed = replace(hardware(), input_dac=Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude"))
    by_polarity = attention_cost(SHAPE, signed).head
    assert by_polarity.latency_s.total == pytest.approx(attention_cost(SHAPE, hardware()).head.latency_s.total)
    twice = attention_cost(SHAPE, signed, CostParameters(signed_passes=2)).head
    assert twice.latency_s["first array"] == pytest.approx(2 * by_polarity.latency_s["first array"])
    assert twice.energy_j == by_polarity.energy_j
    arrays = attention_cost(SHAPE, signed, CostParameters(signed_arrays=2)).head
    assert arrays.area_m2["first array"] == pytest.approx(2 * by_polarity.area_m2["first array"])
    assert arrays.energy_j["writes"] == pytest.approx(1.5 * by_polarity.energy_j["writes"])
    with pytest.raises(ValueError, match="signed_passes"):
        CostParameters(signed_passes=0)
