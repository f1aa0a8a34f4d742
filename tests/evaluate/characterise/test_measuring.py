"""Points of real models: classes that add up, work and caches that are what formulas say, budgets that refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from aimc.evaluate.characterise.budget import Budget, forecast, ladder
from aimc.evaluate.characterise.counting import cache_bytes, read_weights, weight_bytes, work_of
from aimc.evaluate.characterise.crossover import crossovers, winners
from aimc.evaluate.characterise.measuring import Bench, Known, measure_point
from aimc.evaluate.characterise.operators import ATTENTION, CONVOLUTION, EMBEDDING, NORMALISATION, PRODUCT, SCAN
from aimc.evaluate.characterise.point import Point
from aimc.evaluate.characterise.profiling import profiled
from aimc.evaluate.characterise.subjects import Subject, UnknownModel, checkpoint, subject

LENGTH, TOKENS = 48, 3
FIELDS = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
KINDS = {
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "mamba": FIELDS,
    "lfm2": {**FIELDS, **HEADS, "full_attn_idxs": [1]},
}


def bench(**changes: float) -> Bench:
    fixed = {"seconds": 60.0, "memory_bytes": 1e9}
    return Bench(
        device="cpu",
        batch=1,
        new_tokens=TOKENS,
        repetitions=1,
        budget=Budget(**(fixed | changes)),
        meter=None,
        energy_source="none",
        seed=0,
    )


def build(kind: str) -> PreTrainedModel:
    found = Subject(name=kind, config=AutoConfig.for_model(kind, **KINDS[kind]))
    return found.build(longest=256, device="cpu", dtype=torch.float32, seed=0)


@pytest.fixture(scope="module", params=KINDS)
def measured(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, Point]:
    model, point = build(request.param), Point(model=request.param, weights="random", length=LENGTH)
    measure_point(model, point, bench(), Known())
    return model, point


def test_a_point_is_whole(measured: tuple[PreTrainedModel, Point]) -> None:
    model, point = measured
    assert point.not_run is None and point.left_out is None
    assert point.first_token_s and point.token_s and point.first_token_s > 0
    assert point.weights_bytes == weight_bytes(model)
    parts = (point.weights_bytes, point.activations_bytes, point.kv_bytes, point.state_bytes)
    assert point.peak_bytes == sum(part or 0 for part in parts) and point.activations_bytes
    for phase in (point.prompt, point.token):
        assert phase.flops and phase.intensity and phase.unknown == []
        assert sum(phase.shares().values()) == pytest.approx(1)


def test_each_family_has_its_classes(measured: tuple[PreTrainedModel, Point]) -> None:
    _, point = measured
    own = {"gpt2": {ATTENTION}, "mamba": {SCAN, CONVOLUTION}, "lfm2": {ATTENTION, CONVOLUTION}}[point.model]
    for phase in (point.prompt, point.token):
        found = {name for name in (ATTENTION, SCAN, CONVOLUTION) if phase.host_s[name]}
        assert found == own
        assert all(phase.host_s[name] for name in (PRODUCT, NORMALISATION, EMBEDDING))
        assert not any(phase.device_s.values()), "the host is the device"


def test_the_cache_of_a_hybrid_is_not_zero(measured: tuple[PreTrainedModel, Point]) -> None:
    """Every layer with attention keeps a key and a value for all tokens but the last; states do not grow."""
    _, point = measured
    kept = LENGTH + TOKENS
    kv = {"gpt2": 2 * 2 * 32 * kept * 4, "mamba": 0, "lfm2": 1 * 2 * (2 * 8) * kept * 4}
    states = {"gpt2": 0, "mamba": 2 * 64 * (16 + 4) * 4, "lfm2": 1 * 32 * 3 * 4}
    assert (point.kv_bytes, point.state_bytes) == (kv[point.model], states[point.model])


def test_work_is_that_of_the_weights_and_more(measured: tuple[PreTrainedModel, Point]) -> None:
    model, point = measured
    assert point.token.flops is not None and point.prompt.flops is not None
    weights = 2 * read_weights(model)
    assert weights < point.token.flops * 1.1 and point.token.flops < 3 * weights
    assert point.prompt.flops > 0.5 * LENGTH * (weights - 2 * 64 * 32), "the head sees the last token alone"


@pytest.mark.slow
def test_classes_add_up_to_the_clock() -> None:
    """Within 2 %, which a quiet machine shows: another process may come between the clock and the call."""
    model, tokens = build("gpt2"), torch.zeros(1, 256, dtype=torch.int64)
    gaps = [1.0]
    while min(gaps) > 0.02 and len(gaps) < 6:
        with torch.no_grad():
            (call,) = profiled(model, lambda: model(tokens), device="cpu")
        gaps.append(call.gap)
    assert min(gaps) <= 0.02


def test_known_work() -> None:
    def flops(model: nn.Module, *shape: int) -> float:
        with torch.no_grad():
            (work,) = work_of(model, lambda: model(torch.zeros(*shape)))
        return work.flops

    assert flops(nn.Linear(8, 16, bias=False), 4, 8) == 2 * 4 * 8 * 16
    depthwise = nn.Conv1d(8, 8, 3, groups=8, bias=False)
    assert flops(depthwise, 1, 8, 10) == 2 * 8 * 8 * 3, "one input channel each, not eight"

    class Transform(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x)

    assert flops(Transform(), 64) == pytest.approx(5 * 64 * 6 / 2, rel=0.05)


def test_weights_that_a_token_reads() -> None:
    tied = build("gpt2")
    n = sum(p.numel() for p in tied.parameters())
    positions = tied.config.n_positions * 32
    assert read_weights(tied) == n - positions, "the head reads its table, positions are looked up"
    untied = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **KINDS["gpt2"], tie_word_embeddings=False))
    assert read_weights(untied) == sum(p.numel() for p in untied.parameters()) - 64 * 32 - 1024 * 32


def test_forecasts() -> None:
    assert forecast({}, 64) == 0
    assert forecast({64: 1.0}, 128) == 4
    square = {n: 3.0 + 0.1 * n + 1e-3 * n**2 for n in (64, 128, 256)}
    assert forecast(square, 4096) == pytest.approx(3 + 409.6 + 1e-3 * 4096**2, rel=1e-3)
    assert forecast({64: 5.0, 128: 5.0}, 512) == 20, "a chunk that is padded hides the growth"
    assert forecast({64: 1.0}, 256, power=1) == 4
    assert forecast({64: 1.0, 128: 2.0, 256: 4.0}, 512, power=1) == pytest.approx(8)


def test_the_ladder_has_no_step_too_high() -> None:
    assert ladder([256, 512]) == [16, 64, 256, 512]
    assert ladder([16384]) == [1024, 4096, 16384] and ladder([16]) == [16]
    assert ladder([256, 65536]) == [16, 64, 256, 1024, 4096, 16384, 65536]


def test_what_does_not_fit_is_not_run() -> None:
    model, known = build("gpt2"), Known(prompt_s={32: 1.0, 64: 4.0}, memory={32: 1e8, 64: 4e8}, events={32: 10.0})
    point = Point(model="gpt2", weights="random", length=128)
    measure_point(model, point, bench(seconds=10.0), known)
    assert point.not_run == "not run (needs 1.6 GB / 16 s)" and point.first_token_s is None
    assert point.n_read_weights, "known without a run"


def test_what_is_too_long_for_a_profile_is_timed_alone() -> None:
    point = Point(model="gpt2", weights="random", length=16)
    measure_point(build("gpt2"), point, bench(max_events=1.0), Known(events={8: 10.0}))
    assert point.first_token_s and point.prompt.flops is None
    assert point.left_out is not None and point.left_out.startswith("classes, work and activations: 20 operators")


def test_crossovers() -> None:
    lengths = (256, 512, 1024)
    curves = {"flat": dict.fromkeys(lengths, 8.0), "grows": {256: 4.0, 512: 8.0 / 2**0.5, 1024: 16.0}}
    curves["never"] = dict.fromkeys(lengths, 1.0)
    found = {(c.winner, c.other): c for c in crossovers("time", curves)}
    crossing = found["flat", "grows"]
    assert crossing.from_length is not None and 512 < crossing.from_length < 1024
    assert found["never", "flat"].from_length is None
    assert str(found["never", "grows"]) == "never takes less than grows at all lengths to 1,024"


def test_winners_are_of_those_that_were_measured() -> None:
    curves = {"short": {256: 1.0}, "long": {256: 3.0, 512: 4.0}}
    first, second = winners("time", curves, ["short", "long", "never"])
    assert (first.model, first.value, first.second, first.ratio, first.missing) == ("short", 1, "long", 3, ("never",))
    assert (second.model, second.second, second.ratio, second.missing) == ("long", None, None, ("short", "never"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_model", "no model type of this transformers"),
        ("gpt2:n_embd=63,n_head=2,nonsense", "neither a name of"),
        ("/no/such/folder", "neither a name of"),
    ],
)
def test_a_name_that_is_no_model(name: str, message: str) -> None:
    with pytest.raises(UnknownModel, match=message) as caught:
        subject(name)
    assert "\n" not in str(caught.value)


def test_a_model_type_with_fields() -> None:
    found = subject("mamba:hidden_size=32,num_hidden_layers=2,vocab_size=64,use_conv_bias=false")
    assert (found.config.hidden_size, found.config.use_conv_bias, found.weights) == (32, False, "random")


def test_a_checkpoint_keeps_its_positions(tmp_path) -> None:
    config = AutoConfig.for_model("gpt2", **KINDS["gpt2"], n_positions=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = checkpoint(str(tmp_path))
    assert (found.weights, found.longest) == ("checkpoint", 32)
    assert found.build(longest=64, device="cpu", dtype=torch.float32, seed=0).config.n_positions == 32


def test_random_weights_get_as_many_positions_as_are_asked_for() -> None:
    model = build("gpt2")
    assert model.config.n_positions == 1024
    longer = subject("gpt2:n_positions=16,vocab_size=64,n_embd=32,n_layer=1,n_head=2")
    assert longer.build(longest=40, device="cpu", dtype=torch.float32, seed=0).config.n_positions == 40


def test_slots_are_a_state() -> None:
    class SlotLayer:
        def __init__(self) -> None:
            self.keys = self.values = None
            self.slots = torch.zeros(2, 4)

    class SomeCache:
        def __init__(self) -> None:
            self.layers = [SlotLayer()]

    SlotLayer.__module__ = "aimc.somewhere"
    assert cache_bytes(SomeCache()) == (0, 32)
