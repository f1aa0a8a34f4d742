"""The two recall tasks: texts that are what they say, and accuracies that are right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import aimc
from aimc import presets
from aimc.evaluate.recall import IGNORED, MARK, TASKS, associative_recall, induction_heads, recall
from aimc.hardware import Array
from aimc.models.gsa import put_on_cells
from tests.models.gsa.tiny import tiny


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def told(text: list[int], key: int) -> int | None:
    """The value that stood with a key in pairs, or behind the mark."""
    pairs = dict(zip(text[::2], text[1::2], strict=False))
    return pairs.get(key)


def test_pairs_and_a_key_that_stood_among_them() -> None:
    ids, labels = associative_recall(200, generator())
    assert ids.shape == labels.shape == (200, 19)
    assert ids[:, ::2].max() == 4 and ids[:, 1::2].min() == 5 and ids.max() == 9
    for text, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
        for t in range(0, 19, 2):
            answer = told(text[:t], text[t])
            assert wanted[t] == (IGNORED if answer is None else answer)
        assert wanted[-1] != IGNORED and set(wanted[1::2]) == {IGNORED}


def test_a_mark_what_stands_behind_it_and_the_mark_again() -> None:
    ids, labels = induction_heads(200, generator())
    assert ids.shape == (200, 29) and (ids == MARK).sum(dim=1).tolist() == [2] * 200 and (ids[:, -1] == MARK).all()
    assert (labels[:, :-1] == IGNORED).all() and labels[:, -1].min() >= 1
    places = {text.index(MARK) for text in ids.tolist()}
    assert places == set(range(27)), "anywhere, also right before the question but one"
    for text, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
        assert wanted[-1] == text[text.index(MARK) + 1]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_same_seed_same_texts(task: Any) -> None:
    assert torch.equal(task.draw(9, generator(1)).ids, task.draw(9, generator(1)).ids)
    assert not torch.equal(task.draw(9, generator(1)).ids, task.draw(9, generator(2)).ids)


class Knows(GPT2LMHeadModel):
    """Answers associative recall by looking it up, where `share` of the texts are concerned."""

    share = 1.0

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        logits = torch.zeros(*input_ids.shape, 10)
        for row, text in enumerate(input_ids.tolist()):
            answer = told(text[:-1], text[-1])
            assert answer is not None
            right = row < self.share * len(input_ids)
            logits[row, -1, answer if right else 0] = 1.0
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_accuracy_is_the_share_of_right_answers(share: float) -> None:
    model = Knows(GPT2Config(vocab_size=10, n_embd=4, n_layer=1, n_head=1, n_positions=32))
    model.share = share
    found = recall(model, TASKS["associative recall"], n=80, batch_size=40)
    assert float(found) == share
    assert found.stderr == pytest.approx((share * (1 - share) / 79) ** 0.5)


def test_arrays_and_slots_are_measured_over_chips() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(ValueError, match="no analog arrays to be non-ideal"):
        recall(model, TASKS["associative recall"], n=8, nonideality=presets.typical())
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=32, rows=32)
    aimc.convert(model, hardware)
    slots = tiny()
    softmax = presets.with_softmax(hardware)
    softmax.array = Array(window=6, rows=6)
    put_on_cells(slots, softmax)
    for analog in (model, slots):
        one, again = (
            recall(analog, TASKS["associative recall"], n=40, nonideality=presets.typical(), chips=3) for _ in range(2)
        )
        assert len(one.per_chip) == 3 and one.per_chip == again.per_chip, "the same number, the same chip"
        assert len(recall(analog, TASKS["associative recall"], n=8, chips=3).per_chip) == 1, "nothing is random"


@pytest.mark.parametrize(
    ("draw", "sizes", "message"),
    [
        (associative_recall, {"length": 21}, "length=21, vocabulary=10: .* give even numbers"),
        (associative_recall, {"vocabulary": 2}, "vocabulary=2"),
        (induction_heads, {"length": 3}, "length=3, vocabulary=20"),
    ],
)
def test_sizes_without_room_are_told(draw: Any, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(4, generator(), **sizes)


def test_no_text_is_told() -> None:
    with pytest.raises(ValueError, match="n=0: at least one text"):
        recall(tiny(), TASKS["induction heads"], n=0)
