"""A GPT-2 small on a GPU: a step of training, and a decoded token with and without a CUDA graph; digital and on arrays.
The rows of :mod:`benchmarks.kernels`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, StaticCache

import aimc
from aimc import presets
from aimc.hardware import Hardware
from aimc.models.arrays import set_generator

BATCH, TOKENS = 8, 1024
OFF = 0.1
"""By how much a graph's logits may differ from those of a step of the same text, relative to their norm."""
ROUNDS = 10
ROOM = 4 * ROUNDS
"""Tokens that timing may add to a text."""
Measure = Callable[[], dict[str, float | str]]


def training_rows() -> Iterator[tuple[str, Measure]]:
    """Digital (FlashAttention), clean, with noise."""
    cell = presets.gain_cell_cmos()
    yield "digital", partial(_training, None)
    yield "published cell", partial(_training, cell)
    yield "typical noise", partial(_training, replace(cell, noise=presets.typical()))
    yield "softmax", partial(_training, presets.with_softmax(cell))


def decoding_rows() -> Iterator[tuple[str, Measure]]:
    """A token at a full window."""
    for batch in (1, 16):
        yield f"digital, batch {batch}", partial(_decoding, None, batch)
        yield f"published cell, batch {batch}", partial(_decoding, presets.gain_cell_cmos(), batch)


def _model(hardware: Hardware | None) -> GPT2LMHeadModel:
    """Of random weights, without dropout."""
    torch.manual_seed(0)
    config = GPT2Config(n_positions=2 * TOKENS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config)
    if hardware is not None:
        aimc.convert(model, hardware)
    model.to(torch.device("cuda"))  # type: ignore[arg-type]
    if hardware is not None:
        set_generator(model, torch.Generator("cuda").manual_seed(0))
    return model


def _training(hardware: Hardware | None) -> dict[str, float | str]:
    """One step of AdamW under bfloat16 autocast."""
    model = _model(hardware).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(50257, (BATCH, TOKENS), device="cuda")

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    torch.cuda.reset_peak_memory_stats()
    ms = _milliseconds(step)
    assert torch.isfinite(step()), "the loss is not finite"
    return {"step ms": ms, "memory GB": torch.cuda.max_memory_allocated() / 1e9}


@torch.no_grad()
def _decoding(hardware: Hardware | None, batch: int) -> dict[str, float | str]:
    """One token of each text at `TOKENS` tokens, step by step and as one CUDA graph, in bfloat16; and whether the graph
    goes on with the same logits."""
    model = _model(hardware).eval()
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    ids = torch.randint(50257, (batch, TOKENS), device="cuda")
    on_arrays = None if hardware is None else aimc.GainCellCache(model)
    cache = on_arrays or StaticCache(config=model.config, max_cache_len=TOKENS + ROOM)
    model(ids, past_key_values=cache, logits_to_keep=1)
    if on_arrays is not None:
        on_arrays.fix()
    token = ids[:, -1:].clone()
    position = torch.full((1, 1), TOKENS, device="cuda")

    def step() -> Tensor:
        return model(token, position_ids=position, past_key_values=cache, logits_to_keep=1).logits

    by_step = _milliseconds(step)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()
    by_graph = _milliseconds(graph.replay)
    got = logits.float().clone()
    expected = step().float()  # one token later, of the same number: hardly anything has changed
    off = ((got - expected).norm() / expected.norm()).item()
    assert off < OFF, f"the graph goes on {off:.2g} off"
    numbers: dict[str, float | str] = {
        "token ms": by_step,
        "as a graph ms": by_graph,
        "graph off by": off,
    }
    if on_arrays is not None:
        numbers["cache MB"] = on_arrays.n_bytes / 1e6
    return numbers


def _milliseconds(call: Callable[[], object]) -> float:
    """Median of a few runs, after two."""
    times = []
    for _ in range(ROUNDS + 2):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times[2:])[ROUNDS // 2]
