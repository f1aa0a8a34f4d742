"""Digital baselines: right attention or no number, energy from counters or none, published numbers marked as such."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import benchmarks.__main__ as program
from aimc.evaluate import energy
from aimc.evaluate.energy import Meter, energy_per_call, find_meter, idle_power
from benchmarks import baselines, cases
from benchmarks.baselines import CONTENDERS, FUSED, MATMUL, STEP_SUBJECT, Caches
from benchmarks.case import DIGITAL, SUBJECT, Result
from benchmarks.cases import BASELINE, CASES, DECODING, measure
from benchmarks.comparison import (
    MEASURED,
    MODEL,
    PUBLISHED,
    Row,
    comparison_figure,
    comparison_table,
    csv_text,
    fastest,
    rows_of,
)
from benchmarks.settings import Settings, default_settings, quick_settings
from benchmarks.timing import Times
from benchmarks.whole_model import measured_model

WHERE = {"device": "a CPU", "threads": 1, "load": 0.0}


def run(folder: Path, *words: str) -> int:
    return program.main(
        ["--quick", "--seconds", "0.01", "--width", "160", "--cases", BASELINE, "--out", str(folder), *words]
    )


def result(batch: int = 2, **values: Any) -> Result:
    """A measured step at the published sizes, two milliseconds in every contender unless told otherwise."""
    fixed: dict[str, Any] = {
        **{"case": BASELINE, "measures": "", "tokens": 1024, "window": 1024, "dtype": "float32", "hardware": "digital"},
        **{"leakage": False, "backend": "digital", "check": "", "subject": STEP_SUBJECT},
        "shapes": {"batch": batch, "heads": 12, "head_size": 64},
        "median_s": dict.fromkeys(CONTENDERS, 2e-3),
    }
    return Result(**(fixed | values))


def test_a_run_writes_results_csv_and_figure(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bench.jsonl", "baseline.csv", "baseline.png"}
    lines = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    assert [line["shapes"]["batch"] for line in lines] == [1, 3]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "baseline.csv").read_text())))
    assert [row["kind"] for row in rows] == [MEASURED] * 8 + [MODEL], "published sizes are others"
    for row in rows:
        assert float(row["token_s"]) == pytest.approx(float(row["step_s"]) / int(row["batch"]))
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16", "16/8/32 levels"}
    measured = lines[0]["median_s"]
    assert float(rows[0]["step_s"]) == measured[STEP_SUBJECT] and lines[0]["time_ratio"].keys() == measured.keys() - {
        STEP_SUBJECT
    }


def test_the_query_sees_every_key() -> None:
    """Of T keys that are all alike, each gets 1/T; with `is_causal` the first gets all."""
    keys, values = torch.zeros(1, 1, 8, 4), torch.eye(8).view(1, 1, 8, 8)
    for how in (FUSED, MATMUL):
        assert baselines.attend(torch.ones(1, 1, 1, 4), keys, values, how).flatten().tolist() == pytest.approx(
            [1 / 8] * 8
        )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, k, v, how: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v, how: F.scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:]),
        lambda q, k, v, how: (q @ k.transpose(-1, -2)) @ v,
        lambda q, k, v, how: torch.full_like(q, float("nan")),
    ],
    ids=["key 0 alone", "one key forgotten", "no softmax", "no number"],
)
def test_a_wrong_baseline_is_refused(
    wrong: Callable[..., Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "attend", wrong)
    assert run(tmp_path) == 1
    assert "of attention over all 128 keys; allowed is" in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.iterdir())


def test_caches_are_distinct_and_swept() -> None:
    settings = replace(quick_settings(), swept_bytes=2**20)
    caches = Caches(settings, 3, "bfloat16")
    layer_bytes = sum(x.numel() * x.element_size() for x in caches.layers[0])
    assert (len(caches.layers) - 1) * layer_bytes < 2**20 <= len(caches.layers) * layer_bytes
    assert len({x.data_ptr() for layer in caches.layers for x in layer}) == 2 * len(caches.layers)
    key = caches.layers[0][0]
    assert key.shape == (3, 2, 128, 32) and not torch.equal(key[0], key[1]), "every sequence has its own keys"
    assert len(Caches(replace(settings, swept_bytes=1), 1, "float32").layers) == 2


def test_a_step_writes_its_token() -> None:
    caches = Caches(quick_settings(), 2, "float32")
    baselines.sweep(caches, FUSED)
    for keys, values in caches.layers:
        assert torch.equal(keys[:, :, caches.slot], caches.key[:, :, 0])
        assert torch.equal(values[:, :, caches.slot], caches.value[:, :, 0])


def test_time_and_energy_are_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that sweeps 11 or 22 caches, and takes 44 s and 44 J, is as many steps."""
    calls: list[str] = []
    meter = Meter(name="44 J a call", read=lambda: {"all": 44.0 * len(calls)}, wraps_at={})
    monkeypatch.setattr(cases, "find_meter", lambda device: (meter, meter.name))
    monkeypatch.setattr(
        cases,
        "time_in_turn",
        lambda c, **_: Times(repetitions=3, median_s=dict.fromkeys(c, 44.0), iqr_s=dict.fromkeys(c, 4.4)),
    )
    monkeypatch.setattr(baselines, "sweep", lambda caches, how: calls.append(how))
    monkeypatch.setattr(energy, "MIN_SECONDS", 0.01)
    settings = replace(quick_settings(), step_batches=(3,), swept_bytes=2**21, seconds=0.01)
    case = next(case for case in CASES if case.name == BASELINE)
    (make,) = case.points(settings)
    got = measure(case, make, settings)
    assert got.failed is None and got.energy_source == "44 J a call" and got.idle_w == 0
    assert got.shapes["caches"] == {"float32": 11, "bfloat16": 22}
    for name, (_, dtype) in CONTENDERS.items():
        steps = got.shapes["caches"][dtype]
        assert got.median_s[name] == got.energy_j[name] == pytest.approx(44 / steps)
        assert got.iqr_s[name] == pytest.approx(4.4 / steps)


def test_energy_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "MIN_SECONDS", 0.01)
    calls: list[int] = []
    meter = Meter(name="2 J a call", read=lambda: {"all": 2.0 * len(calls)}, wraps_at={})

    def call() -> None:
        calls.append(1)
        time.sleep(0.001)

    assert energy_per_call(call, meter, seconds=0, device="cpu") == pytest.approx(2)
    assert len(calls) > 1 and idle_power(meter, seconds=0) == 0


def rapl(folder: Path, joules: float, wraps_at: float = 100.0) -> None:
    """What Linux shows of one package, a part of it, and the platform that it is part of."""
    kinds = {"intel-rapl:0": ("package-0", joules), "intel-rapl:0:0": ("core", 1e6), "intel-rapl:1": ("psys", 2e6)}
    for name, (kind, value) in kinds.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "name").write_text(f"{kind}\n")
        (folder / name / "energy_uj").write_text(f"{round(value * 1e6)}\n")
        (folder / name / "max_energy_range_uj").write_text(f"{round(wraps_at * 1e6)}\n")


def test_rapl_counts_packages_and_wraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert find_meter("cpu") == (None, f"not measured: no RAPL counter under {tmp_path}")
    rapl(tmp_path, 98.0)
    meter, said = find_meter("cpu")
    assert meter is not None and said == "RAPL, whole package"
    before = meter.read()
    rapl(tmp_path, 3.0)
    assert before == {"intel-rapl:0": 98.0} and meter.between(before, meter.read()) == pytest.approx(5.0)


def test_rapl_that_is_closed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    rapl(tmp_path, 1.0)

    def closed(path: Path) -> float:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(energy, "_joules", closed)
    meter, said = find_meter("cpu")
    assert meter is None and "RAPL cannot be read (Permission denied" in said and "root" in said


def test_gpu_without_a_counter_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter, said = find_meter("cuda")
    assert meter is None and said == "not measured: pynvml is not installed (pip install nvidia-ml-py)"


def test_gpu_counter_is_that_of_this_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    asked: list[str] = []

    def handle(uuid: str) -> str:
        asked.append(uuid)
        return uuid

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 4200,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="1-2-3"))
    meter, _ = find_meter("cuda")
    assert meter is not None and asked == ["GPU-1-2-3"] and meter.read() == {"board": pytest.approx(4.2)}

    def refuse(handle: str) -> int:
        raise NVMLError("Not Supported")

    fake.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert find_meter("cuda") == (None, "not measured: NVML: Not Supported")


def test_published_rows_are_marked_and_stand_at_their_sizes_alone() -> None:
    rows = rows_of([result()], Settings(), WHERE)
    assert [row.kind for row in rows] == [MEASURED] * 4 + [PUBLISHED] * 2 + [MODEL]
    gpu = rows[4]
    assert (gpu.machine, gpu.batch, gpu.token_s, gpu.token_energy_j) == (
        "RTX 4090",
        64,
        2.2371650629793294e-05,
        7.178261876106262e-3,
    )
    assert gpu.step_s == pytest.approx(64 * gpu.token_s) and "[L25]" in gpu.implementation
    arrays = rows[-1]
    assert arrays.token_s == pytest.approx(65e-9) and arrays.token_energy_j == pytest.approx(12 * 6.15e-9)
    assert [row.kind for row in rows_of([result()], replace(Settings(), heads=4), WHERE)] == [MEASURED] * 4 + [MODEL]
    assert rows_of([], Settings(), WHERE) == [] == rows_of([result(failed="wrong")], Settings(), WHERE)


def test_energy_is_per_token_or_not_there() -> None:
    rows = rows_of([result(batch=4, energy_j=dict.fromkeys(CONTENDERS, 8e-3), energy_source="RAPL")], Settings(), WHERE)
    assert rows[0].token_energy_j == pytest.approx(2e-3) and rows[0].energy_source == "RAPL"
    without = rows_of([result(energy_source="not measured: no counter")], Settings(), WHERE)
    assert without[0].token_energy_j is None
    line = next(csv.DictReader(io.StringIO(csv_text(without))))
    assert line["token_energy_j"] == "" and line["energy_source"] == "not measured: no counter"


def test_the_fastest_implementation_is_the_baseline() -> None:
    times = dict(zip(CONTENDERS, (3e-3, 2e-3, 4e-3, 5e-3), strict=True))
    kept = [row for row in fastest(rows_of([result(median_s=times)], Settings(), WHERE)) if row.kind == MEASURED]
    assert [(row.dtype, row.implementation, row.step_s) for row in kept] == [
        ("float32", MATMUL, 2e-3),
        ("bfloat16", FUSED, 4e-3),
    ]


def test_the_whole_model_is_of_one_machine() -> None:
    """Twelve layers of 2 ms in a token of 60 ms: 36 ms are left, and attention at no cost gains 60/36."""
    sizes = {"batch": 1, "heads": 12, "head_size": 64, "layers": 12, "vocabulary": 50257}
    decoding = result(case=DECODING, subject=SUBJECT, shapes=sizes, median_s={SUBJECT: 0.1, DIGITAL: 60e-3})
    one = result(batch=1)
    whole = measured_model([decoding, one], Settings(), WHERE)
    assert whole is not None
    (gain,) = whole.gains
    assert gain.baseline.attention_latency_s == pytest.approx(24e-3) and gain.baseline.rest_latency_s == pytest.approx(
        36e-3
    )
    assert gain.limit_latency == pytest.approx(60 / 36) and gain.model_latency == pytest.approx(
        60e-3 / (36e-3 + 780e-9)
    )
    assert gain.model_energy is None
    assert measured_model([one], Settings(), WHERE) is None and measured_model([decoding], Settings(), WHERE) is None
    assert measured_model([decoding, result(batch=2)], Settings(), WHERE) is None, "another batch"
    assert measured_model([replace(decoding, dtype="float64"), one], Settings(), WHERE) is None, "another precision"
    disturbed = replace(decoding, median_s={SUBJECT: 0.1, DIGITAL: 20e-3})
    assert measured_model([disturbed, one], Settings(), WHERE) is None


def test_figure_and_table_say_what_was_not_measured() -> None:
    rows: list[Row] = rows_of([result(energy_source="not measured: no counter")], Settings(), WHERE)
    left, right = comparison_figure(rows).axes
    assert [text.get_text() for text in right.texts].count("  not measured: no counter") == 2
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == [
        "a CPU, 1 thread, float32, B=2",
        "a CPU, 1 thread, bfloat16, B=2",
        "RTX 4090, float32, B=64",
        "Jetson Nano, float32, B=64",
        "gain cells",
    ]
    assert [patch.get_hatch() for patch in left.patches] == ["", "", "///", "///", ""]
    assert "not measured: no counter" in str(comparison_table(rows).caption)


def test_default_batches_include_one_and_the_published_one() -> None:
    assert {1, 64} <= set(default_settings().step_batches)
    assert default_settings().swept_bytes >= 2**28
