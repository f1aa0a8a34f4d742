"""Two synthetic tasks that ask whether a model can recall what it has read: associative recall and induction heads.

- **Associative recall**: pairs of key and value, `a 2 c 4 b 3 a 2 d 1 b`, and then a key alone: which value stood with
  it? Half of the vocabulary are keys, half values; a key keeps its value throughout a text.
- **Induction heads**: random tokens, among them once a mark and the token behind it, and at the end the mark again:
  which token stood behind it?

Source: D. Fu et al., "Hungry Hungry Hippos", ICLR 2023, arXiv 2212.14052, section 3.1, whose sizes are the defaults
(texts of 20 and 30 tokens, vocabularies of 10 and 20). Published for two layers: attention 100 and 100 %, H3 99.8 and
100 %, S4D 86.0 and 35.6 %, guessing 25 and 5 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aimc.evaluate.chips import chips_of
from aimc.evaluate.estimates import Estimate, mean_of
from aimc.hardware import Noise
from aimc.models.modes import evaluating

IGNORED = -100
"""Label of a token that nobody is asked for."""
MARK = 0
"""The mark of the induction-head task."""


class Texts(NamedTuple):
    """Texts of one task."""

    ids: Tensor
    """Tokens, `[N, T]`; the last is the question."""
    labels: Tensor
    """What follows each token, where the text before it says what must, else :data:`IGNORED`, `[N, T]`: not shifted.
    The last is the answer."""


def associative_recall(n: int, generator: torch.Generator, *, length: int = 20, vocabulary: int = 10) -> Texts:
    """Pairs of key and value, then a key that stood among them.

    Args:
        n: texts.
        generator: what they are drawn from.
        length: tokens of a text with its answer; pairs are `(length − 2) / 2`.
        vocabulary: half keys, half values.

    Raises:
        ValueError: no room for a pair, or an odd number of either.
    """
    if length < 4 or length % 2 or vocabulary < 4 or vocabulary % 2:
        raise ValueError(
            f"length={length}, vocabulary={vocabulary}: a text is pairs and a question with its answer, a vocabulary"
            " keys and as many values; give even numbers, at least 4"
        )
    half, n_pairs = vocabulary // 2, length // 2 - 1
    keys = torch.randint(half, (n, n_pairs), generator=generator)
    value_of = half + torch.randint(half, (n, half), generator=generator)
    asked = keys.gather(1, torch.randint(n_pairs, (n, 1), generator=generator))
    keys = torch.cat([keys, asked], dim=1)  # [N, pairs + 1]
    values = value_of.gather(1, keys)
    ids = torch.stack([keys, values], dim=2).flatten(1)[:, :-1]
    seen = (keys[:, :, None] == keys[:, None, :]).tril(-1).any(dim=2)  # a key whose value the text has told
    labels = torch.full_like(ids, IGNORED)
    labels[:, ::2] = values.masked_fill(~seen, IGNORED)
    return Texts(ids, labels)


def induction_heads(n: int, generator: torch.Generator, *, length: int = 30, vocabulary: int = 20) -> Texts:
    """Random tokens with a mark among them, and the mark again.

    Args:
        n: texts.
        generator: what they are drawn from.
        length: tokens of a text with its answer.
        vocabulary: the mark and all others.

    Raises:
        ValueError: no room for the mark and what stands behind it, or nothing that could.
    """
    if length < 4 or vocabulary < 3:
        raise ValueError(
            f"length={length}, vocabulary={vocabulary}: a text holds mark, answer and mark again, and there are several"
            " answers; give at least 4 tokens and a vocabulary of at least 3"
        )
    ids = torch.randint(1, vocabulary, (n, length - 1), generator=generator)
    at = torch.randint(length - 3, (n, 1), generator=generator)
    ids.scatter_(1, at, MARK)
    ids[:, -1] = MARK
    labels = torch.full_like(ids, IGNORED)
    labels[:, -1:] = ids.gather(1, at + 1)
    return Texts(ids, labels)


@dataclass(frozen=True, slots=True)
class Task:
    """One of the two."""

    name: str
    draw: Callable[[int, torch.Generator], Texts]
    """So many texts."""
    vocabulary: int
    chance: float
    """Accuracy of a guess among the possible answers."""


TASKS = {
    task.name: task
    for task in (
        Task("associative recall", associative_recall, 10, 1 / 5),
        Task("induction heads", induction_heads, 20, 1 / 19),
    )
}
"""By name."""


def recall(
    model: PreTrainedModel,
    task: Task,
    *,
    n: int = 500,
    seed: int = 0,
    batch_size: int = 125,
    nonideality: Noise | None = None,
    chips: int = 1,
) -> Estimate:
    """Share of the last questions that a model answers, greedily, over all its tokens.

    Args:
        model: digital, on arrays, or with its slots in cells.
        task: of :data:`TASKS`.
        n: texts, the same ones for every model and chip.
        seed: of the texts.
        batch_size: texts a pass.
        nonideality: of gain cells in place of the hardware's own; None: the hardware's own.
        chips: how many of them, where anything is random.

    Raises:
        ValueError: no text, or noise asked of a digital model.
    """
    if n < 1:
        raise ValueError(f"n={n}: at least one text is needed to measure anything; give n=1 or more")
    device = next(model.parameters()).device
    texts = task.draw(n, torch.Generator().manual_seed(seed))
    right = []
    with evaluating(model), torch.no_grad():
        for _ in chips_of(model, chips, nonideality):
            answers = [
                model(input_ids=ids.to(device), use_cache=False).logits[:, -1].argmax(dim=-1).cpu()
                for ids in texts.ids.split(batch_size)
            ]
            right.append((torch.cat(answers) == texts.labels[:, -1]).float())
    return mean_of(right, block=1)
