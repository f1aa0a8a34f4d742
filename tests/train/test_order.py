"""The order of the training text: drawn by the seed, the same however it is read, and gone on with where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState

from train.alarms import Alarms
from train.arguments import arguments_of, texts_of
from train.models import digital_model
from train.schema import RunConfig
from train.shards import Tokens
from train.tokens import TokenData, prepare
from train.trainer import HardwareAwareTrainer, Training, train

Compose = Callable[..., RunConfig]
N, STEPS, PER_STEP = 22, 12, 4
WHOLE = N // PER_STEP
"""Steps in one pass over the text; two sequences are left over."""


class Killed(BaseException):
    """Stands for a process that ends without warning."""


@pytest.fixture
def read(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """Trains, or goes on, and gives the numbers of the sequences of each step."""
    config = compose(tmp_path)
    text = prepare(config.data, None, config.model.n_positions)
    context = 8
    tokens = np.repeat(np.arange(N, dtype=np.uint16), context)  # each sequence says its number
    data = TokenData(text.tokenizer, {"train": tokens, "valid": tokens}, "numbers")
    original = HardwareAwareTrainer.training_step

    def run(
        *settings: str, folder: str = "one", size: int = PER_STEP, accumulate: int = 1, kill_at: int | None = None,
        data_seed: int = 0,
    ) -> list[list[int]]:  # fmt: skip
        given = [f"trainer.digital.{k}={v}" for k, v in (("steps", STEPS), ("batch_size", size))]
        every = 1 if folder == "killed" else STEPS
        wanted = compose(
            tmp_path,
            *given,
            f"trainer.digital.accumulate={accumulate}",
            f"trainer.digital.save_every={every}",
            *settings,
        )
        seen: list[list[int]] = [[] for _ in range(STEPS)]

        def training_step(self: HardwareAwareTrainer, model: Any, inputs: Any, *args: Any) -> torch.Tensor:
            if self.state.global_step == kill_at:
                raise Killed
            seen[self.state.global_step] += inputs["input_ids"][:, 0].tolist()
            return original(self, model, inputs, *args)

        monkeypatch.setattr(HardwareAwareTrainer, "training_step", training_step)
        training = Training(
            stage="digital",
            setting="trainer.digital",
            recipe=wanted.trainer.recipe("digital"),
            shared=wanted.trainer,
            context=context,
            data_seed=data_seed,
            folder=tmp_path / folder,
        )
        model = digital_model(config.model, text.tokenizer, 0)
        if kill_at is None:
            train(model, data, training)
        else:
            with pytest.raises(Killed):
                train(model, data, training)
        return seen

    return run


def test_order_is_drawn_by_the_seed_for_each_pass(read: Callable[..., list[list[int]]]) -> None:
    steps = read()
    assert [len(step) for step in steps] == [PER_STEP] * STEPS
    passes = [sum(steps[i : i + WHOLE], []) for i in range(0, STEPS - STEPS % WHOLE, WHOLE)]
    assert all(len(set(seen)) == WHOLE * PER_STEP for seen in passes)  # no sequence twice in a pass
    assert passes[0] != passes[1]
    assert read(folder="two") == steps
    assert read(folder="three", data_seed=1) != steps


def test_order_is_the_same_in_micro_steps_and_with_workers(read: Callable[..., list[list[int]]]) -> None:
    steps = read()
    assert read(folder="micro", size=1, accumulate=PER_STEP) == steps
    assert read("trainer.workers=2", folder="workers") == steps


@pytest.mark.parametrize("kill_at", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_order_goes_on_where_it_stopped(read: Callable[..., list[list[int]]], kill_at: int) -> None:
    """In the first pass and in the second; with micro-steps that another size shares."""
    steps = read()
    before = read(folder="killed", kill_at=kill_at)
    after = read(folder="killed", size=2, accumulate=2)
    assert [a or b for a, b in zip(before, after, strict=True)] == steps
    assert not any(after[:kill_at])


def dealt(training: Training, data: TokenData, model: Any, n: int, passes: int) -> list[list[int]]:
    """First token of each sequence that `n` processes are dealt by the trainer's own loaders, pass by pass, in the
    order in which they see them together."""
    batches: list[list[list[list[int]]]] = []
    for rank in range(n):
        arguments = arguments_of(training, False)  # finds out how many there are
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(PartialState._shared_state, "num_processes", n)
            patch.setitem(PartialState._shared_state, "process_index", rank)
            alarms = Alarms(model, clip=1.0, drift=1e9, gradient=1e9, say=print)
            trainer = HardwareAwareTrainer(
                training=training, teacher=None, alarms=alarms, model=model, args=arguments, **texts_of(data, training)
            )
            loader = trainer.get_train_dataloader()
            assert trainer.args.world_size == n
            seen = []
            for number in range(passes):
                loader.set_epoch(number)
                seen.append([batch["input_ids"][:, 0].tolist() for batch in loader])
        batches.append(seen)
    return [
        [
            token
            for together in zip(*(seen[number] for seen in batches), strict=True)
            for batch in together
            for token in batch
        ]
        for number in range(passes)
    ]


def test_order_is_the_same_for_any_number_of_processes(compose: Compose, tmp_path: Path) -> None:
    """Of one, two and four, over shards, the ends of which lie within sequences."""
    context, n = 8, 42
    tokens = np.repeat(np.arange(n, dtype=np.uint16), context)
    orders = []
    for size, processes in ((4, 1), (2, 2), (1, 4)):
        config = compose(tmp_path, f"trainer.digital.batch_size={size}", "trainer.digital.steps=20", "model.dropout=0")
        text = prepare(config.data, None, config.model.n_positions)
        shards = Tokens([tokens[:83], tokens[83:84], tokens[84:]])
        data = TokenData(text.tokenizer, {"train": shards, "valid": tokens}, "numbers")
        training = Training(
            stage="digital",
            setting="trainer.digital",
            recipe=config.trainer.recipe("digital"),
            shared=config.trainer,
            context=context,
            folder=tmp_path,
        )
        orders.append(dealt(training, data, digital_model(config.model, text.tokenizer, 0), processes, 2))
    assert [len(seen) for seen in orders[0]] == [40, 40] and orders[0][0] != orders[0][1]
    assert len(set(orders[0][0])) == 40 and orders[0][0] != sorted(orders[0][0])
    assert orders[1] == orders[0] and orders[2] == orders[0]
