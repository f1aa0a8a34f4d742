"""Families that train from scratch: their sizes, their fields, and a run of each hybrid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.train.conftest import compose_config
from train.configs import checked
from train.errors import RunError
from train.evaluate import evaluate
from train.models import digital_model, load_analog
from train.pipeline import execute
from train.pretrained import load_digital
from train.schema import EvaluationConfig, ModelConfig, RunConfig
from train.scratch import FAMILIES, OPTIONAL
from train.trainer import HardwareAwareTrainer

silent: Callable[[str], None] = lambda what: None  # noqa: E731 (one line says it)


class Tokenizer:
    """As large as the tiny models'."""

    bos_token_id = eos_token_id = 0

    def __len__(self) -> int:
        return 2048


def fresh(config: ModelConfig) -> torch.nn.Module:
    return digital_model(config, Tokenizer(), seed=0)  # type: ignore[arg-type]


def chosen(name: str) -> ModelConfig:
    return checked(compose_config("run", f"model={name}"), RunConfig).model


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tiny_models_have_the_parameters_of_the_tiny_gpt2(model_type: str) -> None:
    tiny, model = fresh(chosen("tiny")), fresh(chosen(f"{model_type}_tiny"))
    assert model.config.model_type == {"s4d": "h3"}.get(model_type, model_type)
    assert model.config.max_position_embeddings == 256
    counts = [sum(parameter.numel() for parameter in x.parameters()) for x in (tiny, model)]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


def test_gpt2_is_what_it_was() -> None:
    torch.manual_seed(0)
    sizes = GPT2Config(
        vocab_size=2048, n_positions=256, n_embd=128, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0
    )
    before, now = GPT2LMHeadModel(sizes).state_dict(), fresh(ModelConfig(n_layer=1)).state_dict()
    assert all(now[name].equal(before[name]) for name in before)


def test_every_family_uses_what_it_says() -> None:
    for name, family in FAMILIES.items():
        if "n_inner" in family.uses:
            config = fresh(ModelConfig(family=name, n_layer=2, n_inner=96)).config
            assert 96 in (getattr(config, field, None) for field in ("n_inner", "intermediate_size"))
        assert set(family.uses) <= set(OPTIONAL)
    without = fresh(ModelConfig(family="h3", n_layer=2, attention_layers=[], n_state=8)).config
    assert without.attention_layers == [] and without.state_size == 8
    assert fresh(ModelConfig(family="mamba", n_layer=1, n_state=8)).config.state_size == 8
    assert fresh(ModelConfig(family="gsa", n_layer=1, n_slots=8)).config.num_slots == 8
    grouped = fresh(ModelConfig(family="stripedhyena", n_kv_head=2)).config
    assert grouped.num_key_value_heads == 2 and grouped.layer_types.count("full_attention") == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "lstm"}, "family=lstm: unknown; use one of gpt2, h3, s4d, stripedhyena"),
        ({"n_state": 8}, "n_state=8: a gpt2 model has no such size; leave model.n_state out"),
        ({"family": "mamba", "n_slots": 8}, "n_slots=8: a mamba model has no such size"),
        ({"family": "h3", "n_kv_head": 2}, "n_kv_head=2: a h3 model has no such size"),
        ({"family": "stripedhyena", "n_kv_head": 3}, "n_kv_head=3: must divide model.n_head=4"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        ModelConfig(**fields)  # type: ignore[arg-type]


def test_sizes_that_a_family_refuses_are_told_on_one_line() -> None:
    with pytest.raises(RunError, match=r"^model: attention_layers=\[4\]: there is no layer 4 among 4") as told:
        fresh(ModelConfig(family="h3", attention_layers=[4]))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("family", "spared"), [("h3", ("shift", "diagonal")), ("stripedhyena", ("filter",))])
def test_what_says_how_fast_a_state_forgets_does_not_decay(family: str, spared: tuple[str, ...]) -> None:
    model = fresh(ModelConfig(family=family, n_layer=2))
    decaying = HardwareAwareTrainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    matrices = [name for name, x in model.named_parameters() if x.ndim >= 2]
    assert decaying == [name for name in matrices if not any(f".{part}." in name for part in spared)] != matrices


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("h3", "backbone.layers.1.mixer"),
        pytest.param("stripedhyena", "backbone.blocks.1.inner_mha_cls", marks=pytest.mark.slow),
    ],
)
def test_a_hybrid_trains_and_goes_onto_arrays(
    family: str, layer: str, tmp_path: Path, compose: Callable[..., RunConfig]
) -> None:
    words = [f"model.family={family}", "model.n_layer=2", "model.n_state=8"]
    execute(compose(tmp_path, *words, "stage.name=digital"), silent)
    assert load_digital(str(tmp_path / "digital")).config.model_type == family
    execute(compose(tmp_path, *words, "stage.name=linear"), silent)
    analog = load_analog(tmp_path / "linear")
    assert [name for name, module in analog.named_modules() if name.endswith("gain_cell")] == [f"{layer}.gain_cell"]


def test_a_model_without_attention_is_refused_before_it_trains(
    tmp_path: Path, compose: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.run.train", lambda *args, **kwargs: pytest.fail("training was started"))
    with pytest.raises(RunError, match="none of its 1 layers has attention, so nothing would be replaced") as told:
        execute(compose(tmp_path, "model.family=h3", "model.attention_layers=[]", "stage.name=pipeline"), silent)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("family", ["mamba", pytest.param("gsa", marks=pytest.mark.slow)])
def test_a_family_without_attention_is_trained_and_measured_as_gpt2_is(
    family: str,
    tmp_path: Path,
    compose: Callable[..., RunConfig],
    compose_evaluation: Callable[..., EvaluationConfig],
) -> None:
    execute(compose(tmp_path, f"model.family={family}", "stage.name=digital"), silent)
    record = json.loads((tmp_path / "digital" / "stage.json").read_text())
    assert record["training_steps"] == 4 and 100 < record["perplexity"]["digital"] < 400
    assert f"Architecture: {family}, 1 layers, width 32" in (tmp_path / "digital" / "README.md").read_text()
    evaluate(compose_evaluation(tmp_path / "digital", "nonideality=none"))
    results = json.loads((tmp_path / "digital" / "evaluation" / "results.json").read_text())
    assert results["rows"][0]["perplexity"] == pytest.approx(record["perplexity"]["digital"], rel=1e-3)
    with pytest.raises(RunError, match=f"model_type='{family}'.*cannot go onto gain-cell arrays") as told:
        execute(compose(tmp_path / "arrays", f"model.family={family}", "stage.name=pipeline"), silent)
    assert "\n" not in str(told.value) and not (tmp_path / "arrays" / "digital").exists()


@pytest.mark.slow
def test_a_model_without_attention_trains(tmp_path: Path, compose: Callable[..., RunConfig]) -> None:
    execute(compose(tmp_path, "model.family=h3", "model.attention_layers=[]", "stage.name=digital"), silent)
    assert load_digital(str(tmp_path / "digital")).config.layer_types == ["linear_attention"]
