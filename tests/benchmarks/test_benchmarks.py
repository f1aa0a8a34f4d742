"""The benchmark says only what it has checked: end to end at small shapes, with a wrong subject, and when it is cut
off."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aimc
import aimc.nn.attention
import benchmarks.__main__ as program
from aimc.evaluate.memory import held_bytes, peak_bytes
from aimc.models.arrays import hardware_of
from benchmarks import decoding, models, operators
from benchmarks.case import SUBJECT, CheckError, Result
from benchmarks.cases import (
    BASELINE,
    BATCH_DECODING,
    CASES,
    DECODING,
    FORWARD,
    LONG_TEXT,
    NO_LEAKAGE,
    STEP,
    TRAINING,
)
from benchmarks.report import one_line, write_results
from benchmarks.settings import default_settings, quick_settings
from benchmarks.timing import MIN_REPETITIONS, time_in_turn

FIELDS = {
    *("case", "measures", "tokens", "window", "shapes", "dtype", "hardware", "leakage", "backend", "check", "subject"),
    *("repetitions", "median_s", "iqr_s", "time_ratio", "peak_bytes", "memory_ratio", "held_bytes", "held_ratio"),
    *("energy_j", "idle_w", "energy_source"),
    *("commit", "torch", "device", "cores", "threads", "load", "date"),
}
FAST = ["--quick", "--tokens", "64", "--seconds", "0.01", "--width", "160"]


def run(folder: Path, *words: str) -> int:
    return program.main([*FAST, "--out", str(folder), *words])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_quick_run_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--quick", "--seconds", "0.01", "--out", str(tmp_path), "--width", "160"]) == 0
    results = lines(tmp_path)
    assert {result["case"] for result in results} == {case.name for case in CASES}
    comparisons = {case.name: set(case.comparisons) for case in CASES}
    for result in results:
        assert set(result) == FIELDS
        times, memory = result["median_s"], result["peak_bytes"]
        assert (times or memory) and {result["subject"], *comparisons[result["case"]]} == set(times or memory)
        assert (result["subject"] == SUBJECT) == (result["case"] != BASELINE)
        assert all(value > 0 for value in (*times.values(), *memory.values()))
        assert not times or result["repetitions"] >= MIN_REPETITIONS
        for name, ratio in result["time_ratio"].items():
            assert ratio == pytest.approx(times[result["subject"]] / times[name])
        if result["case"] == BASELINE:
            assert result["backend"] == "digital" and "bfloat16 within" in result["check"]
            continue
        assert result["backend"] == quick_settings().backend
        assert "quantisers off" in result["check"] or "elements moved" in result["check"]
        if result["case"] == FORWARD:
            assert result["shapes"]["multiply_adds"] > 0
    assert {(r["tokens"], r["window"]) for r in results if r["case"] == FORWARD} == {(64, 128), (192, 128), (192, 64)}
    for name in ("time.png", "memory.png", "baseline.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    written = {path.name for path in tmp_path.iterdir()} - {
        "amdahl.png"
    }  # it needs a clock that is exact at these sizes
    assert written == {
        "bench.jsonl",
        "time.png",
        "memory.png",
        "baseline.csv",
        "baseline.png",
    }, "a temporary file is left"
    printed = capsys.readouterr().out
    assert (
        "decoding (held)" in printed
        and "at least" in printed
        and "not measured" in printed
        and "training step" in printed
        and "products alone" in printed
    )


@pytest.mark.parametrize("case", [FORWARD, TRAINING, NO_LEAKAGE])
def test_a_wrong_subject_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--cases", case) == 0
    before = (tmp_path / "bench.jsonl").read_bytes()
    right = operators.gain_cell
    monkeypatch.setattr(operators, "gain_cell", lambda inputs, hardware: right(inputs, hardware) + 1 / 15)
    assert run(tmp_path, "--cases", case) == 1
    assert (tmp_path / "bench.jsonl").read_bytes() == before
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "1.00e+00 of the elements moved, by at most 1.00 steps" in printed
    assert run(tmp_path / "new", "--cases", case) == 1
    assert not (tmp_path / "new").exists()


def test_a_wrong_gradient_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(inputs: operators.Inputs, hardware: Any) -> Tensor:
        q, k, v = inputs
        k = k.detach() + 1.0001 * (k - k.detach())  # the same number, its gradient 1e-4 too large
        return operators.eager((q, k, v), hardware)

    monkeypatch.setattr(operators, "gain_cell", wrong)
    assert run(tmp_path, "--cases", FORWARD) == 0
    assert run(tmp_path, "--cases", TRAINING) == 1
    assert "of the elements beyond that; allowed is 1.0e-05" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_unwritten_output_is_refused(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = quick_settings()
    hardware = settings.hardware(settings.window, backend="eager")
    monkeypatch.setattr(operators, "gain_cell", lambda inputs, hardware: torch.full_like(inputs[0], bad))
    with pytest.raises(CheckError, match="not finite"):
        operators.check_output(operators.make_inputs(settings, 64, gradient=False), hardware, hardware)


def test_a_case_that_raises_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Tensor:
        raise NotImplementedError("no such backend")

    monkeypatch.setattr(operators, "gain_cell", broken)
    assert run(tmp_path, "--cases", FORWARD, STEP) == 1
    printed = capsys.readouterr().out
    assert "NotImplementedError: no such backend" in printed and f"✓ {STEP}" in printed


def test_a_wrong_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layers of the model compute something else on the subject's backend than on the eager one."""
    from aimc.nn.attention import GainCellAttention

    right = GainCellAttention.forward

    def wrong(self: GainCellAttention, *arguments: Any, **keywords: Any) -> Tensor:
        return right(self, *arguments, **keywords) * (1.0 if self.hardware.backend == "eager" else 1.1)

    monkeypatch.setattr(GainCellAttention, "forward", wrong)
    assert run(tmp_path, "--cases", STEP) == 1
    assert "1 of 1 failed" in capsys.readouterr().out
    assert not (tmp_path / "bench.jsonl").exists()


def wrong_decode(right: Any) -> Any:
    """Single tokens come out 1 % too large; prompts and the parallel operator are right."""

    def wrong(query: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        return right(query, *arguments, **keywords) * (1.01 if query.shape[2] == 1 else 1.0)

    return wrong


def growing_decode(right: Any) -> Any:
    """The arrays keep something of every token."""

    def growing(query: Tensor, key: Tensor, value: Tensor, arrays: Any, **keywords: Any) -> Tensor:
        arrays.history = [*getattr(arrays, "history", []), torch.ones(1)]
        return right(query, key, value, arrays, **keywords)

    return growing


@pytest.mark.parametrize(
    ("case", "decode", "reason"),
    [
        (DECODING, wrong_decode, "allowed 0.0001"),
        (BATCH_DECODING, wrong_decode, "allowed 0.0001"),
        (LONG_TEXT, wrong_decode, "allowed 0.0001"),
        (LONG_TEXT, growing_decode, "the cache grows with the text"),
    ],
)
def test_a_wrong_decode_is_refused(
    case: str,
    decode: Any,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(aimc.nn.attention, "decode", decode(aimc.nn.attention.decode))
    assert run(tmp_path, "--cases", case) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and reason in printed
    assert not (tmp_path / "bench.jsonl").exists()


def test_a_wrong_digital_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A comparison that forgets half of its window would be faster."""

    class Short(decoding.Ring):
        def update(self, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
            key, value = super().update(*arguments, **keywords)
            return (key[:, :, ::2], value[:, :, ::2]) if arguments[0].shape[2] == 1 else (key, value)

    monkeypatch.setattr(decoding, "Ring", Short)
    assert run(tmp_path, "--cases", DECODING) == 1
    assert "FAILED" in capsys.readouterr().out


def test_decoding_leaves_no_trace_in_the_time() -> None:
    """Equal hardware that is another object is compared field by field at every token: neither check nor fork may leave
    one."""
    settings = quick_settings()
    analog, prompt = models.make_models(settings)[0].eval(), models.make_tokens(settings)[:, :8]
    before = hardware_of(analog)
    decoder = decoding.Decoder(analog, aimc.GainCellCache(analog), prompt)
    decoding.check_decoding(analog, prompt, 2, settings)
    fork = decoder.fork()
    assert hardware_of(analog) == before
    for cache in (decoder.cache, fork.cache):
        assert isinstance(cache, aimc.GainCellCache)
        for layer in cache.gain_cell_layers:
            assert layer.arrays is not None and layer.arrays.hardware == before
    decoder.step()
    assert fork.cache.get_seq_length() == 8 and decoder.cache.get_seq_length() == 9


def test_an_interrupted_run_leaves_the_old_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, "--cases", FORWARD, TRAINING) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    right, calls = program.measure, []

    def measure(*arguments: Any) -> Result:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(program, "measure", measure)
    assert run(tmp_path, "--cases", FORWARD, TRAINING) == 130
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failed_result_cannot_be_written(tmp_path: Path) -> None:
    failed = result(FORWARD, failed="CheckError: [wrong]")
    with pytest.raises(ValueError, match="nothing is written"):
        write_results(tmp_path / "bench.jsonl", [result(FORWARD), failed], {})
    assert not list(tmp_path.iterdir())
    assert "FAILED" in one_line(failed)


def test_memory_sees_a_known_allocation() -> None:
    n = 20 * 2**20

    def call() -> Tensor:
        first = torch.ones(n, dtype=torch.uint8)
        second = torch.ones(2 * n, dtype=torch.uint8)
        del first
        third = torch.ones(n // 2, dtype=torch.uint8)  # fits below the peak of three
        return second[0] + third[0]

    assert peak_bytes(call, device="cpu") == pytest.approx(3 * n, rel=0.1)


def test_memory_counts_results_and_gradients_but_no_inputs() -> None:
    x = torch.ones(5 * 2**20, requires_grad=True)
    # exp keeps its result for the backward pass; the gradient is there beside it
    measured = peak_bytes(lambda: torch.autograd.grad(x.exp(), x, torch.ones_like(x)), device="cpu")
    assert measured == pytest.approx(3 * x.numel() * 4, rel=0.1)


def test_held_memory_is_counted_once_and_through_containers() -> None:
    whole = torch.ones(10, dtype=torch.uint8)

    class Owner:
        def __init__(self) -> None:
            self.model = torch.nn.Linear(100, 100)
            self.parts = {"a": [whole, whole[:5]], "b": (torch.ones(3, dtype=torch.uint8), None)}

    assert held_bytes(Owner()) == 13


def test_memory_writes_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    peak_bytes(lambda: torch.ones(10), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_times_are_taken_in_turn() -> None:
    order: list[str] = []
    times = time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.001, device="cpu")
    assert times.repetitions >= MIN_REPETITIONS
    assert order == ["a", "b"] * (1 + times.repetitions), "what is quick is called once before it is timed"


def test_the_first_round_of_what_is_slow_counts() -> None:
    order: list[str] = []
    times = time_in_turn({"a": lambda: time.sleep(0.02), "b": lambda: order.append("b")}, seconds=0.04, device="cpu")
    assert len(order) == times.repetitions == MIN_REPETITIONS
    assert times.median_s["a"] >= 0.02 > times.median_s["b"]


def test_registry_covers_what_was_asked_for() -> None:
    settings = default_settings()
    assert len({case.name for case in CASES}) == len(CASES)
    assert {256, 512, 1024, 2048, 4096, 8192} <= set(settings.tokens)
    assert settings.windows(4096) == (1024, 256, 4096) and settings.windows(1024) == (1024,)
    for case in CASES:
        assert len(list(case.points(settings))) >= 1, "points are made when they are run, not before"


@pytest.mark.parametrize(
    "words", [["--tokens", "0"], ["--seconds", "-1"], ["--cases", "nonsense"], ["--threads", "0"], ["--seconds", "nan"]]
)
def test_bad_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--quick", *words])
    assert words[0] in capsys.readouterr().err


def result(case: str, tokens: int = 1024, window: int = 1024, **values: Any) -> Result:
    """A result with these numbers."""
    fixed = {
        "measures": "",
        "shapes": {},
        "dtype": "float32",
        "hardware": "",
        "leakage": True,
        "backend": "blocked",
        "check": "",
    }
    return Result(case=case, tokens=tokens, window=window, **fixed, **values)
