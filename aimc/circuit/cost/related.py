"""What others have published beside this: machines and algorithms for attention, each with its claim, what it was
claimed on, and what the cost model here says of that.

A claim is in the words' numbers of the abstract, and nothing is taken that could not be read; where the workload behind
a claim is not in what could be read, the row says so, and the model's number is for a workload of that kind that is
chosen and named here. A ratio over another baseline is not a ratio over ours: the two columns stand side by side and
are not divided.

Sources:
    [A24] S. Afifi, I. Thakkar, S. Pasricha, "ARTEMIS: A Mixed Analog-Stochastic In-DRAM Accelerator for Transformer
        Neural Networks", arXiv 2407.12638 (2024), abstract.
    [P22] H. Peng et al., "A Length Adaptive Algorithm-Hardware Co-design of Transformer on FPGA Through Sparse
        Attention and Dynamic Pipelining", arXiv 2208.03646, DAC 2022, abstract.
    [J24] G. A. Jaradat et al., "Hybrid Dynamic Pruning: A Pathway to Efficient Transformer Inference", arXiv 2407.12893
        (2024), abstract.
    [S24] R. Sanovar et al., "LeanAttention: Hardware-Aware Scalable Attention Mechanism for the Decode-Phase of
        Transformers", arXiv 2405.10480, abstracts of version 1 (2024) and of MLSys 2025.
    [L23] H. Liu, P. Abbeel, "Blockwise Parallel Transformer for Large Context Models", arXiv 2305.19370, NeurIPS 2023,
        abstract.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aimc.circuit.cost import published
from aimc.circuit.cost.attention import attention_cost
from aimc.circuit.cost.model import DigitalBaseline
from aimc.circuit.cost.parameters import CostParameters
from aimc.circuit.cost.report import si, times
from aimc.circuit.cost.shape import ModelShape
from aimc.circuit.cost.state import StateCost, StateShape, digital_state, state_cost
from aimc.hardware import Array, Hardware, presets

NOT_READ = "not in what could be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One published row."""

    name: str
    source: str
    kind: str
    """What it is."""
    claims: str
    """Numbers as published, over the baselines that they name."""
    workload: str
    """What they were claimed on, as far as it could be read."""
    stand_in: str
    """The workload that the model here is asked about."""
    model: Callable[[], str]
    """What the model gives for it."""
    comparable: str
    """What can be compared, and what not."""


def _hardware(window: int) -> Hardware:
    return replace(presets.gain_cell_cmos(), array=Array(window=window))


def _whole_model() -> str:
    shape = ModelShape()
    p = CostParameters()
    digital = DigitalBaseline.estimated(shape, 1024, p)
    cost = attention_cost(shape, _hardware(1024), p)
    assert digital.attention_energy_j and digital.rest_energy_j
    alone = digital.attention_energy_j / cost.energy_j.total
    whole = (digital.attention_energy_j + digital.rest_energy_j) / (cost.energy_j.total + digital.rest_energy_j)
    return f"energy {times(alone)} less in attention, {times(whole)} in the whole model, over an ideal digital machine"


def _attention_at(lengths: tuple[int, ...]) -> str:
    parts = []
    for tokens in lengths:
        cost = attention_cost(ModelShape(), _hardware(max(64, tokens)), CostParameters()).layer
        head = cost.head
        parts.append(
            f"{tokens} tokens: {si(head.energy_j.total, 'J')} a head and token, {si(cost.latency_s.total, 's')}"
        )
    return "; ".join(parts)


def _pruned() -> str:
    base = presets.for_pretrained(_hardware(1024), input_levels=8, storage_levels=8, pruned=True)
    every = attention_cost(ModelShape(), replace(base, pruning=replace(base.pruning, kept_share=1.0)), CostParameters())
    kept = attention_cost(ModelShape(), base, CostParameters())
    return (
        f"{si(kept.head.energy_j.total, 'J')} a head and token where all kept takes"
        f" {si(every.head.energy_j.total, 'J')}: {times(every.energy_j.total / kept.energy_j.total)} less"
    )


def _long_decode() -> str:
    tokens, p = 262_144, CostParameters()
    shape = ModelShape(layers=1, query_heads=1, kv_heads=1)
    cost, digital = attention_cost(shape, _hardware(tokens), p), DigitalBaseline.estimated(shape, tokens, p)
    assert digital.attention_energy_j and digital.attention_latency_s
    return (
        f"{si(cost.energy_j.total, 'J')} and {si(cost.latency_s.total, 's')} in {si(cost.area_m2.total, 'm²')};"
        f" memory at its full rate takes {si(digital.attention_energy_j, 'J')} and"
        f" {si(digital.attention_latency_s, 's')}; but after"
        f" {_memory_tokens():,.0f} tokens of {published.LAYERS} layers a cell has kept 1/e"
    )


def _memory_tokens() -> float:
    """Tokens after which a cell has kept 1/e, at the published point."""
    leakage = presets.gain_cell_cmos(published.LAYERS).leakage
    assert leakage.tau_s is not None and leakage.token_time_s is not None
    return leakage.tau_s / leakage.token_time_s


def _blockwise() -> str:
    shape, tokens, block, size = ModelShape(), 32_768, 1024, 4
    scores = shape.query_heads * tokens**2 * size
    mlp = tokens * shape.mlp_width * size
    return (
        f"scores {si(scores, 'B')} plain, none in blocks; MLP {si(mlp, 'B')} whole,"
        f" {si(block * shape.mlp_width * size, 'B')} in blocks of {block:,} tokens"
    )


CLAIMS = (
    Claim(
        name="ARTEMIS",
        source="[A24] arXiv 2407.12638",
        kind="accelerator in DRAM: stochastic products, analog accumulation in time",
        claims="at least 3.0 × faster, 1.8 × less energy, 1.9 × better energy efficiency than GPU, TPU, CPU and"
        " other accelerators in memory",
        workload=f"inference of whole transformers for text and images; models and lengths {NOT_READ}",
        stand_in="GPT-2 small, 1,024 tokens, whole model",
        model=_whole_model,
        comparable="not comparable: it runs whole models in memory, over other baselines; here"
        " attention alone is analog, and the rest sets the bound",
    ),
    Claim(
        name="FPGA, sparse attention",
        source="[P22] arXiv 2208.03646",
        kind="co-design on an FPGA: sparse attention of linear complexity, scheduling by length",
        claims="80.2 × and 2.6 × faster than a CPU and a GPU, 4 × better energy efficiency than an optimised GPU",
        workload=f"language tasks of varied lengths, padded otherwise; models and lengths {NOT_READ}",
        stand_in="attention of GPT-2 small's shape at 128 and 512 tokens",
        model=lambda: _attention_at((128, 512)),
        comparable="the direction only: both make attention linear in the tokens read (theirs by selecting, ours by"
        " a full array); an encoder's bidirectional attention is not what the arrays do",
    ),
    Claim(
        name="Hybrid dynamic pruning (HDP)",
        source="[J24] arXiv 2407.12893",
        kind="co-processor: integer block pruning, early head pruning, approximation, at run time",
        claims="no number in the abstract; less computation and memory access in attention",
        workload=f"models and lengths {NOT_READ}",
        stand_in="attention of GPT-2 small's shape, 1,024 tokens, a quarter kept and recomputed",
        model=_pruned,
        comparable="the idea: the arrays' `pruned_softmax` selects by analog scores where HDP selects by integer"
        " parts; blocks and heads are not pruned here",
    ),
    Claim(
        name="LeanAttention",
        source="[S24] arXiv 2405.10480",
        kind="GPU kernel: decoding over long K/V split into equal shares, softmax rescaling as a reduction",
        claims="2.6 × over FlashAttention-2 on average, to 8.33 × at 512k tokens (version 1); 1.73 × over"
        " FlashDecoding on average, to 2.18 × at 256k (MLSys)",
        workload=f"attention of one decoding step, contexts to 512k; heads and batches {NOT_READ}",
        stand_in="one head of 64 features, one token over 262,144 keys",
        model=_long_decode,
        comparable="its best case is the memory's rate, which is the digital machine here, not a kernel. Without a"
        " softmax partial sums simply add, so sub-tiles are such a split already (aimc/ops/decode/)",
    ),
    Claim(
        name="Blockwise Parallel Transformer",
        source="[L23] arXiv 2305.19370",
        kind="algorithm for training: attention and MLP of a block of tokens together",
        claims="sequences 32 × as long as with a plain transformer, up to 4 × as with earlier memory-efficient ways",
        workload=f"training of language models and reinforcement learning; sizes {NOT_READ}",
        stand_in="GPT-2 small, largest activation of a layer at 32,768 tokens, float32",
        model=_blockwise,
        comparable="not comparable: memory of training, where the cost model counts inference. The operator walks"
        " keys in blocks already (aimc/ops/blocked/); the MLP in blocks too is what it lacks, and is"
        " transformers' own `apply_chunking_to_forward`",
    ),
)
"""The published rows, each with what the model gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRow:
    """One model's state-space layers, in cells and digital."""

    name: str
    shape: StateShape
    cost: StateCost
    on_chip_j: float
    """Joule per token of a digital machine that keeps the state in an SRAM."""
    in_memory_j: float
    """Joule per token of one that moves the state to memory and back."""


STATES = {
    "Mamba-130M": (24, StateShape(layers=24, channels=1536, state_size=16, decays=1536, taps=4)),
    "Mamba-2-130M": (24, StateShape(layers=24, channels=1536, state_size=128, decays=24, taps=4)),
    "H3-125M, its 11 layers": (12, StateShape(layers=11, channels=768, state_size=64, complex_state=True, taps=64)),
    "the same, real states": (12, StateShape(layers=11, channels=768, state_size=64, taps=64)),
}
"""Layers of the model, which set the time of a token, and its state-space layers, of published sizes (a state of 64 is
32 complex numbers); the last row is what H3's would cost if they did not turn."""


def state_rows(hardware: Hardware | None = None, parameters: CostParameters | None = None) -> list[StateRow]:
    """The state-space layers of :data:`STATES` in gain cells, beside a digital machine.

    Args:
        hardware: of the arrays; None: the published cell at the pace of the model's layers.
        parameters: unit numbers; None: the defaults.
    """
    return [
        StateRow(
            name=name,
            shape=shape,
            cost=state_cost(shape, hardware or presets.gain_cell_cmos(layers), parameters),
            on_chip_j=digital_state(shape, parameters)[0],
            in_memory_j=digital_state(shape, parameters, on_chip=False)[0],
        )
        for name, (layers, shape) in STATES.items()
    ]
