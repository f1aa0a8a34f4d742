"""Text that the digital model writes: drawn by its distribution, once, the same for the same seed, and trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from train import generated
from train.errors import RunError
from train.generated import write_text
from train.models import digital_model
from train.pipeline import execute
from train.record import record_of
from train.schema import RunConfig
from train.source import DataConfig, GeneratedConfig
from train.tokens import Blocks, Mixed, TokenData, prepare
from train.trainer import HardwareAwareTrainer

Compose = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, compose: Compose) -> tuple[RunConfig, TokenData, PreTrainedModel]:
    config = compose(tmp_path_factory.mktemp("source"), "data.kind=generated", "data.real_kind=text")
    data = prepare(config.data, None, 32)
    model = digital_model(config.model, data.tokenizer, 0)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(6)  # type: ignore[union-attr, operator]  # a distribution with a shape
    return config, data, model


def write(
    source: tuple[RunConfig, TokenData, PreTrainedModel],
    cache: Path,
    load: Callable[[], Any] | None = None,
    **fields: Any,
) -> np.ndarray:
    config, data, model = source
    wanted = GeneratedConfig(**{"tokens": 200, "batch_size": 3, **fields})
    settings = replace(config.data, generated=wanted, cache_dir=str(cache))
    return write_text(load or (lambda: model), "digital-1", data, settings, 32, "cpu")


def nobody() -> PreTrainedModel:
    raise AssertionError("all was written before")


def test_the_same_seed_writes_the_same_once(source: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = write(source, tmp_path / "a")
    assert torch.random.get_rng_state().equal(before)
    assert first.dtype == np.uint16 and len(first) == 7 * 32, "the last sequence is written whole"
    assert first.max() < 300 and len({*first.tolist()}) > 50
    (folder,) = (tmp_path / "a").iterdir()
    done = json.loads((folder / "progress.json").read_text())
    assert done["documents"] == 7 and done["files"]["train.bin"]["bytes"] == 7 * 64
    torch.manual_seed(2)
    assert np.array_equal(write(source, tmp_path / "b"), first)
    assert np.array_equal(write(source, tmp_path / "a", nobody), first), "from the cache"
    assert np.array_equal(write(source, tmp_path / "a", nobody, share=0.5), first), "the share shapes no text"
    assert not np.array_equal(write(source, tmp_path / "a", seed=1), first)
    sequences = first.reshape(7, 32)
    assert {*sequences[:, 0].tolist()} == {source[1].tokenizer.bos_token_id}
    assert len({tuple(sequence) for sequence in sequences.tolist()}) == 7


def test_a_killed_writer_goes_on_where_it_was(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(source, tmp_path / "whole", tokens=9 * 32)
    original, calls = generated._sequences, []

    def cut_off(*args: Any) -> torch.Tensor:
        calls.append(args[-1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(generated, "_sequences", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "cut", tokens=9 * 32)
    (folder,) = (tmp_path / "cut").iterdir()
    with (folder / "train.bin").open("ab") as file:
        file.write(b"written after the last commit")
    assert np.array_equal(write(source, tmp_path / "cut", tokens=9 * 32), whole)
    assert calls == [0, 3, 6, 6]


def test_prompts_are_real_training_text(source: Any, tmp_path: Path) -> None:
    sequences = write(source, tmp_path, prompt_tokens=8).reshape(-1, 32)
    text = source[1].splits["train"]
    windows = {tuple(text[i : i + 8].tolist()) for i in range(len(text) - 8)}
    prompts = {tuple(row[:8].tolist()) for row in sequences}
    assert prompts <= windows and len(prompts) == len(sequences)
    with pytest.raises(RunError, match=r"^data\.generated\.prompt_tokens=32: sequences have 32 tokens"):
        write(source, tmp_path, prompt_tokens=32)


def test_text_is_drawn_from_the_models_distribution(source: Any) -> None:
    """Frequencies of the second token against its probabilities; colder and narrower text has fewer of them."""
    _, data, model = source
    count = 400
    second = {}
    for name, fields in (("cold", {"temperature": 0.1}), ("likely", {"top_p": 0.3}), ("plain", {})):
        prompts = torch.full((count, 1), data.tokenizer.bos_token_id)
        drawn = generated._sequences(model.eval(), prompts, GeneratedConfig(**fields), 6, 0)
        second[name] = torch.bincount(drawn[:, 1], minlength=300) / count
    with torch.no_grad():
        expected = model(prompts[:1]).logits[0, -1].softmax(-1)
    ended = drawn[:, 1:-1] == data.tokenizer.eos_token_id
    assert ended.any() and (drawn[:, 2:][ended] != data.tokenizer.eos_token_id).any(), "goes on over the end of a text"
    top = expected.argmax()
    error = (expected[top] * (1 - expected[top]) / count).sqrt()
    assert abs(second["plain"][top] - expected[top]) < 4 * error
    assert (second["likely"] > 0).sum() < (second["plain"] > 0).sum()
    assert second["cold"][top] > second["plain"][top]


@pytest.mark.parametrize(("share", "length"), [(1.0, 6), (0.75, 8), (0.5, 12), (0.1, 60)])
def test_written_sequences_have_their_share(share: float, length: int) -> None:
    written, real = Blocks(np.arange(60), 10), Blocks(np.arange(1000, 1040), 10)
    mixed = Mixed(written, real, share)
    first = [int(mixed[i]["input_ids"][0]) for i in range(len(mixed))]
    assert len(first) == length
    assert [token for token in first if token < 1000] == [0, 10, 20, 30, 40, 50]
    others = [token for token in first if token >= 1000]
    assert others == [1000 + 10 * (i % 4) for i in range(length - 6)]
    if share == 0.5:
        assert sum(token < 1000 for token in first[:6]) == 3, "evenly among each other"


def test_the_real_text_stays_the_same_folder_of_tokens(source: Any, compose: Compose, tmp_path: Path) -> None:
    config, data, _ = source
    assert prepare(compose(tmp_path).data, None, 32).fingerprint == data.fingerprint
    assert DataConfig(kind="generated").text_kind == "embedded" and not DataConfig().is_generated


def test_analog_stages_train_on_it(
    source: Any, tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = source[1].tokenizer.bos_token_id
    trained: dict[str, set[bool]] = {}
    original = HardwareAwareTrainer.training_step

    def training_step(self: HardwareAwareTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        is_written = bool((inputs["input_ids"][:, 0] == mark).all())
        trained.setdefault(self.training.stage, set()).add(is_written)
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(HardwareAwareTrainer, "training_step", training_step)
    words = ["data.kind=generated", "data.real_kind=text", "data.generated.tokens=256", f"data.cache_dir={tmp_path}/c"]
    for stage in ("digital", "linear"):
        execute(compose(tmp_path, f"stage.name={stage}", *words), lambda what: None)
    assert (
        "text written by the digital model (share 1), beside local" in (tmp_path / "linear" / "README.md").read_text()
    )
    assert trained == {"digital": {False}, "linear": {True}}
    record = record_of(tmp_path / "linear", print)
    assert record is not None and record["settings"]["generated"]["tokens"] == 256
    digital = record_of(tmp_path / "digital", print)
    assert digital is not None and "generated" not in digital["settings"]
