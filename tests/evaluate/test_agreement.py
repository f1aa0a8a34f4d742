"""Divergence and agreement against a loop over single tokens, their standard errors by hand, and what is refused."""

from __future__ import annotations

import copy
import math
import statistics
import sys

import pytest
import torch
from torch import nn

import aimc
from aimc import presets
from aimc.evaluate import Measurement, windows
from aimc.evaluate.estimates import block_stderr, exp_mean_of, mean_of
from aimc.hardware import Noise
from tests.conftest import small_arrays, tiny_gpt2
from tests.tiny_models import ids, tiny_model

TEXT = torch.cat([ids(seed).flatten() for seed in range(3)])[:150]
WINDOWS = {"context": 16, "stride": 6, "batch_size": 4}


def on_arrays(family: str = "llama") -> tuple[nn.Module, nn.Module]:
    """A tiny model on arrays with a softmax between them, and the digital one."""
    digital = tiny_model(family)
    model = copy.deepcopy(digital)
    aimc.convert(model, small_arrays(presets.with_softmax(presets.gain_cell_cmos())))
    return model, digital


@torch.no_grad()
def by_hand(
    model: nn.Module, reference: nn.Module, tokens: torch.Tensor, context: int, stride: int
) -> list[list[float]]:
    """Divergence, agreement and both losses of one token after the other, each with what its window shows of it."""
    rows, done = [], 0
    while done < len(tokens) - 1:
        end = min(len(tokens) - 1, done + stride if done else context)
        start = max(0, end - context)
        for position in range(done + 1, end + 1):
            q, p = (of(tokens[None, start:position]).logits[0, -1].double().softmax(-1) for of in (model, reference))
            kl = sum(float(a * (a.log() - b.log())) for a, b in zip(p, q, strict=True))
            at = tokens[position]
            rows.append([kl, float(p.argmax() == q.argmax()), -float(q[at].log()), -float(p[at].log())])
        done = end
    return [list(column) for column in zip(*rows, strict=True)]


def test_a_model_agrees_with_itself() -> None:
    digital = tiny_model("qwen3")
    found = aimc.agreement(digital, digital, TEXT, **WINDOWS)
    assert (found.kl.mean, found.kl.stderr, found.top1.mean, found.top1.stderr) == (0.0, 0.0, 1.0, 0.0)
    assert (found.ratio.mean, found.ratio.stderr) == (1.0, 0.0)
    assert (found.n_tokens, found.context, found.stride) == (len(TEXT) - 1, 16, 6)


def test_it_equals_one_token_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["aimc.evaluate.agreement"], "_ROWS", 5)  # chunks that end inside a window
    model, digital = on_arrays()
    found = aimc.agreement(model, digital, TEXT, **WINDOWS)
    kl, same, ours, theirs = by_hand(model, digital, TEXT, 16, 6)
    assert len(kl) == found.n_tokens == len(TEXT) - 1
    assert found.kl.mean == pytest.approx(statistics.fmean(kl), rel=1e-4) and found.kl.mean > 1e-3
    assert found.top1.mean == pytest.approx(statistics.fmean(same)) and 0 < found.top1.mean < 1
    assert found.perplexity.mean == pytest.approx(math.exp(statistics.fmean(ours)), rel=1e-5)
    assert found.digital.mean == pytest.approx(math.exp(statistics.fmean(theirs)), rel=1e-5)
    assert found.ratio.mean == pytest.approx(found.perplexity.mean / found.digital.mean)
    blocks = torch.tensor(kl).tensor_split(len(kl) // 16)
    sums = [float((block - statistics.fmean(kl)).sum()) for block in blocks]
    by_block = math.sqrt(len(sums) / (len(sums) - 1) * sum(value**2 for value in sums)) / len(kl)
    assert found.kl.stderr == pytest.approx(by_block, rel=1e-3)
    assert found.ratio.stderr < found.perplexity.stderr / found.digital.mean, "both read the same tokens"


def test_it_is_no_symmetric_divergence() -> None:
    one, other = tiny_gpt2(0), tiny_gpt2(1)
    there, back = (aimc.agreement(*pair, TEXT, **WINDOWS).kl.mean for pair in ((one, other), (other, one)))
    assert there != pytest.approx(back, rel=1e-3)


def test_chips_are_those_of_the_perplexity_and_leave_no_trace() -> None:
    model, digital = on_arrays()
    model.train()
    before = model.config.to_dict()
    noise = Noise(mismatch_gain=0.1, read_qk=0.1)
    how = Measurement(chips=2, seed=3, context=16, stride=8, batch_size=3, tokens=100)
    found = aimc.agreement(model, digital, TEXT, how, nonideality=noise)
    alone = aimc.perplexity(model, TEXT, how, nonideality=noise)
    assert found.perplexity.per_chip == pytest.approx(alone.per_chip, rel=1e-6)
    assert found.perplexity.stderr == pytest.approx(alone.stderr, rel=1e-4) and found.n_tokens == alone.n_tokens == 99
    for estimate in (found.kl, found.ratio):
        assert len(set(estimate.per_chip)) == 2 and estimate.std == pytest.approx(statistics.stdev(estimate.per_chip))
        assert estimate.mean == pytest.approx(statistics.fmean(estimate.per_chip))
    assert len(found.digital.per_chip) == 1 and "over 2 chips" in str(found)
    assert model.training and not digital.training and model.config.to_dict() == before


def test_large_vocabularies_are_read_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 49,152 tokens and a context of 1,024 one window at a time; the result is the same."""
    model, digital = on_arrays()
    assert windows.windows_together(model, 16, 4) == 4
    together = aimc.agreement(model, digital, TEXT, **WINDOWS)
    monkeypatch.setattr(windows, "MOST_LOGITS", 2 * 16 * model.config.vocab_size)
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    apart = aimc.agreement(model, digital, TEXT, **WINDOWS)
    handle.remove()
    assert max(seen) == 2 and apart.kl.mean == pytest.approx(together.kl.mean, rel=1e-4)
    monkeypatch.setattr(windows, "MOST_LOGITS", 1)
    assert windows.windows_together(model, 16, 4) == 1
    model.config.vocab_size = 49152
    monkeypatch.undo()
    assert windows.windows_together(model, 1024, 16) == 1


def test_what_both_rule_out_adds_nothing() -> None:
    """A vocabulary padded to a round size, whose last ids get minus infinity."""
    models = [tiny_gpt2(0), tiny_gpt2(1)]
    for model in models:
        model.lm_head.register_forward_hook(lambda *args: args[2].index_fill(-1, torch.tensor([0, 1]), -math.inf))
    found = aimc.agreement(*models, TEXT, **WINDOWS)
    assert math.isfinite(found.kl.mean) and found.kl.mean > 0


def test_standard_errors_by_hand() -> None:
    values = torch.tensor([1.0, 3.0, 2.0, 6.0, 4.0, 8.0])
    assert block_stderr(values, 1) == pytest.approx(statistics.stdev(values.tolist()) / math.sqrt(6))
    assert block_stderr(values, 2) == pytest.approx(statistics.stdev([2.0, 4.0, 6.0]) / math.sqrt(3))
    assert block_stderr(values[:5], 2) == pytest.approx(
        math.sqrt(2 * ((6 - 3 * 3.2) ** 2 + (10 - 2 * 3.2) ** 2)) / 5
    ), "what is left over belongs to a block, not to one of its own"
    assert block_stderr(values, 4) is None, "one block says nothing of its own spread"
    assert block_stderr(values.repeat_interleave(2), 4) == pytest.approx(block_stderr(values, 2)), (
        "repeats tell nothing"
    )
    chips = [values, values + 1]
    mean, exp = mean_of(chips, 2), exp_mean_of(chips, 2)
    assert (mean.mean, mean.per_chip, mean.std) == (4.5, [4.0, 5.0], pytest.approx(math.sqrt(0.5)))
    assert mean.stderr == pytest.approx(block_stderr(values, 2)), "chips do not make the text longer"
    assert exp.mean == pytest.approx((math.exp(4) + math.exp(5)) / 2)
    assert exp.stderr == pytest.approx(exp.mean * block_stderr(values, 2))
    assert str(mean) == "4.5000 ± 1.1547" and str(mean_of([values], 4)) == "4.0000"


def test_the_standard_error_is_what_texts_scatter_by() -> None:
    """Of values in runs of 8, a third as many as it seems tell anything new."""
    draws = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, dim=1)
    scatter = float(draws.mean(1).std())
    told = statistics.fmean(block_stderr(row, 8) for row in draws)
    naive = statistics.fmean(block_stderr(row, 1) for row in draws)
    assert told == pytest.approx(scatter, rel=0.1) and naive < 0.5 * scatter


def test_the_digital_model_has_to_be_one() -> None:
    model, digital = on_arrays()
    with pytest.raises(TypeError, match=r"reference=str: the digital model is needed"):
        aimc.agreement(model, "digital", TEXT)
    with pytest.raises(ValueError, match="it is on analog hardware itself"):
        aimc.agreement(model, model, TEXT)
    with pytest.raises(ValueError, match="a vocabulary of 80 tokens and the model one of 64"):
        aimc.agreement(model, tiny_model("llama", vocab_size=80), TEXT)
    with pytest.raises(ValueError, match="the model has 8 positions"):
        aimc.agreement(model, tiny_model("llama", max_position_embeddings=8), TEXT, context=16)
    with pytest.raises(ValueError, match="no analog arrays"):
        aimc.agreement(digital, digital, TEXT, nonideality=Noise(read_qk=0.1))
    with pytest.raises(ValueError, match="outside the model's vocabulary"):
        aimc.agreement(model, digital, TEXT + 64)
