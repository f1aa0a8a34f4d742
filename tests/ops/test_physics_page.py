"""docs/physics.md and the eager operator are one truth: the page's code computes what the operator does, its table has
the operator's rows in their order, its published values are the presets'."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from aimc import presets
from aimc.hardware import Array, Converter, Features, Leakage, Noise, Normaliser, Protection, Pruning
from aimc.ops.attention import gain_cell_attention
from aimc.ops.eager import eager_attention
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Affine, Scaling
from tests.ops.draws import draws_of
from tests.ops.reference import PAGE, ring_buffer

W, R, D = 16, 4, 3
CHIP = Chip(seed=3, layer=2)
NOISE = Noise(
    write_v=0.02,
    read_qk=0.03,
    read_av=0.04,
    mismatch_gain=0.1,
    mismatch_offset_v=0.02,
    column_gain=0.1,
    column_offset=0.05,
    tau_spread=0.5,
)
ACTIVATIONS = {
    "hard_sigmoid": {"input_dac": Converter(n_levels=16, inl=0.05)},
    "softmax": {
        "activation": "softmax",
        "input_dac": Converter(n_levels=16, v_min=-1.0, inl=0.02),
        "score_adc": Converter(n_levels=64, v_min=-1.0, coding="sign_magnitude", inl=0.02),
        "probability_dac": Converter(n_levels=16, inl=0.03),
    },
    **{
        name: {
            "activation": "pruned_softmax",
            "input_dac": Converter(n_levels=16, v_min=-1.0, inl=0.02),
            "score_adc": Converter(n_levels=64, v_min=-1.0, coding="sign_magnitude", inl=0.02),
            "pruning": Pruning(**pruning),
        }
        for name, pruning in {
            "pruned, share": {"kept_share": 0.3},
            "pruned, comparators": {"select": "threshold", "hysteresis": 0.3, "recompute": "values"},
        }.items()
    },
}
ACTIVATIONS["hard_sigmoid, normalised"] = {
    "input_dac": Converter(n_levels=16, v_min=-1.0, coding="sign_magnitude", inl=0.02),
    "threshold": True,
    "normaliser": Normaliser(is_on=True, full_scale=1.5, counter=Converter(n_levels=16, inl=0.03), least=0.12),
}
PAGE_NAMES = {
    "full_scale_qk": "scale_qk",
    "full_scale_av": "scale_av",
    "full_scale_of_sum": "scale_sum",
    "threshold": "threshold",
    "pulse_threshold": "precharge",
}
REFERENCES = {name: {"full_scale_qk": [0.9, 1.3], "full_scale_av": [0.7, 1.1]} for name in ACTIVATIONS}
REFERENCES["hard_sigmoid"] = {}
REFERENCES["hard_sigmoid, normalised"] |= {"pulse_threshold": [0.05, -0.1], "full_scale_of_sum": [0.8, 2.1]}
REFERENCES["pruned, comparators"]["threshold"] = [0.1, -0.2]
EFFECTS = {
    "nothing leaks": {"leakage": Leakage()},
    "leakage": {},
    "leakage to ground": {"leakage": Leakage(tau_s=1.0, token_time_s=0.02, target_v=0.0)},
    "chip": {"noise": NOISE},
    "chip that leaks to the supply": {
        "noise": NOISE,
        "leakage": Leakage(tau_s=1.0, token_time_s=0.02, target_v=0.9),
    },
    "protection": {"noise": NOISE, "protection": Protection(n_sink=2, n_recent=3)},
    "levels at equal charge": {
        "storage_dac": Converter(n_levels=8, v_min=0.05, v_max=0.9, inl=-0.06, spacing="equal_charge"),
        "protection": Protection(n_recent=3),
    },
    "no levels, equal charge": {"storage_dac": Converter(v_max=0.9, spacing="equal_charge")},
    "listed levels": {"storage_dac": Converter(v_max=0.9, spacing="listed", positions=[0.1, 0.2, 0.42, 0.48, 0.7])},
}


def machine(activation: str, **changes):
    """Levels, curved converters, a cubic cell, 20 % leakage within the window."""
    hardware = replace(
        presets.gain_cell_cmos(),
        backend="eager",
        array=Array(window=W, rows=R, saturation_qk=12.0, saturation_av=8.0),
        leakage=Leakage(tau_s=1.0, token_time_s=0.2 / W),
        storage_dac=Converter(n_levels=8, v_max=0.9, inl=-0.06),
        readout=Converter(n_levels=32, v_min=-1.0, coding="sign_magnitude", inl=0.02),
    )
    return replace(hardware, **(ACTIVATIONS[activation] | changes))


NORMALISED = Features(normalise_queries=True, normalise_keys=True, normalise_values=True)
CORRECTED = {
    "to rest": {"leakage": Leakage(tau_s=1.0, token_time_s=0.04, compensate=True)},
    "to ground, equal charge, protection": {
        "leakage": Leakage(tau_s=1.0, token_time_s=0.04, compensate=True, target_v=0.0),
        "storage_dac": Converter(n_levels=8, v_max=0.9, spacing="equal_charge"),
        "protection": Protection(n_sink=1, n_recent=2),
    },
    "chip": {"noise": NOISE, "leakage": Leakage(tau_s=1.0, token_time_s=0.04, compensate=True)},
    "normalised": {"noise": NOISE, "features": NORMALISED, "protection": Protection(n_sink=2, n_recent=3)},
    "normalised, equal charge": {
        "leakage": Leakage(tau_s=1.0, token_time_s=0.04, compensate=True),
        "features": NORMALISED,
        "storage_dac": Converter(n_levels=8, v_max=0.9, spacing="equal_charge"),
        "protection": Protection(n_recent=2),
    },
    "normalised values alone": {"features": Features(normalise_values=True)},
}


@pytest.mark.parametrize("T", [6, 2 * W + 5], ids=["short", "the ring wraps twice"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("effects", EFFECTS)
def test_code_of_the_page_is_the_eager_operator(effects, activation, T):
    compare(EFFECTS[effects], activation, T)


@pytest.mark.parametrize("T", [6, 2 * W + 5], ids=["short", "the ring wraps twice"])
@pytest.mark.parametrize("effects", CORRECTED)
def test_corrections_of_the_page_are_the_eager_operators(effects, T):
    compare(CORRECTED[effects], "softmax", T)


def norms_of(norms, B, H, H_kv, T):
    """Of query, key and value; one where there is none."""
    sizes = {"query_norm": H, "key_norm": H_kv, "value_norm": H_kv}
    return [norms.get(name, torch.ones(B, n, T)) for name, n in sizes.items()]


def compare(effects, activation, T):
    B, H, H_kv = 2, 2, 1
    hardware, g = machine(activation, **effects), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, n, T, D, generator=g, dtype=torch.float64) for n in (H, H_kv, H_kv))
    scalers = [
        Affine(torch.full((n,), a, dtype=torch.float64), torch.full((n,), b, dtype=torch.float64))
        for n, a, b in ((H, 0.6, 0.1), (H_kv, 0.2, 0.45), (H_kv, 0.2, 0.5))
    ]
    norms = {}
    for name, wanted, n in (("query", 0, H), ("key", 1, H_kv), ("value", 2, H_kv)):
        if getattr(hardware.features, f"normalise_{('queries', 'keys', 'values')[wanted]}"):
            norms[f"{name}_norm"] = 0.5 + torch.rand(B, n, T, generator=g, dtype=torch.float64)
    gain, padding = torch.linspace(0.2, 0.5, H, dtype=torch.float64), torch.zeros(B, T, dtype=torch.bool)
    padding[1, :3] = True
    out = gain_cell_attention(
        *(q, k, v, hardware),
        scaling=Scaling(
            *scalers,
            gain,
            **{name: torch.tensor(x, dtype=torch.float64) for name, x in REFERENCES[activation].items()},
            **norms,
        ),
        key_padding=padding,
        chip=CHIP,
        generator=torch.Generator().manual_seed(5),
    )
    draws = draws_of(hardware, CHIP, 5, B=B, H=H, H_kv=H_kv, T=T, D=D)
    of_heads = {PAGE_NAMES[name]: x for name, x in REFERENCES[activation].items()}
    expected = ring_buffer(q, k, v, hardware, draws, padding, gain, scalers, norms_of(norms, B, H, H_kv, T), **of_heads)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-9, rtol=1e-6)


def rows_of_table() -> list[str]:
    table = PAGE.read_text(encoding="utf-8").split("| row |")[1].split("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def test_the_operator_has_the_rows_of_the_table_in_their_order():
    rows = rows_of_table()
    assert rows[0] == "Scale" and rows[-1] == "Digital sum" and len(rows) == 13
    comments = "\n".join(re.findall(r"^ +# (.*)$", inspect.getsource(eager_attention), re.MULTILINE))
    found = [re.search(rf"\b{row}\b", comments) for row in rows]
    assert None not in found, f"no comment of eager_attention names {rows[found.index(None)]!r}"
    places = [match.start() for match in found]
    assert places == sorted(places)


def test_published_values_are_those_of_the_presets():
    text, hardware = PAGE.read_text(encoding="utf-8").replace("−", "-"), presets.gain_cell_cmos()
    assert f"c = ({', '.join(str(c) for c in presets.CMOS_COEFFICIENTS)})" in text
    assert f"`p(u) = {presets.LINEAR_SLOPE}·u`" in text
    assert f"S_sat = {hardware.array.saturation_qk:g} signal units" in text
    assert f"A_sat = {hardware.array.saturation_av:g}, R = {hardware.array.rows}" in text
    assert f"W = {hardware.array.window}, {hardware.array.n_tiles} sub-tiles" in text
    assert f"{hardware.input_dac.n_levels} levels, T_max {presets.LONGEST_PULSE_S * 1e9:g} ns" in text
    assert f"{hardware.storage_dac.n_levels} levels, V_DD {hardware.cell.supply_v} V" in text
    assert f"τ = {presets.CMOS_TAU_S * 1e3:g} ms" in text and f"layers × {presets.STEP_LATENCY_S * 1e9:g} ns" in text
    assert f"exp(-{hardware.leakage.decay_per_token:.1e})".replace("e-04", "e-4") in text
