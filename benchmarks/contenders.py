"""What `python -m benchmarks.compare` times, in a process of its own whose `aimc` is one of two trees.

It is run as a file and imports nothing of the benchmarks, and of aimc only what is public: `presets`,
`gain_cell_attention`, `Chip`, `convert`, `GainCellCache`. What an older version lacks makes a case unknown to it. Lines
in: the name of a case. Lines out: JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Tensor]
"""One repetition; returns what it computed."""


UNKNOWN = (AttributeError, ImportError, NotImplementedError, TypeError, ValueError)
"""What a tree raises that has not got what a case is made of, or refuses it."""
CLEAN, NOISE, CHIP, SOFTMAX, PRUNED = "", "typical noise, ", "frozen chip, ", "softmax, ", "pruned softmax, "


def hardware_of(backend: str, window: int, variant: str = CLEAN) -> Any:
    """The published cell with leakage and levels; under noise, on one chip, or with a softmax."""
    import aimc

    hardware = aimc.presets.gain_cell_cmos()
    hardware.array.window, hardware.backend = window, backend
    if variant in (SOFTMAX, PRUNED):
        hardware = aimc.presets.with_softmax(hardware)
    if variant == PRUNED:
        hardware.pruning  # noqa: B018  # unknown to older trees, which would not mind the name of an activation
        hardware.activation = "pruned_softmax"
    if variant in (NOISE, CHIP):
        hardware.noise = aimc.presets.typical()
    if variant == CHIP:
        hardware.noise.write_v = hardware.noise.read_qk = hardware.noise.read_av = 0.0
    return hardware


def randomness_of(variant: str, device: str) -> dict[str, Any]:
    """The chip, where there is one, and the source of a call's noise, the same at every call."""
    if variant not in (NOISE, CHIP):
        return {}
    import aimc

    chip = aimc.Chip(seed=0)
    return {"chip": chip, "generator": torch.Generator(device).manual_seed(0)}


def inputs_of(shape: tuple[int, int, int, int], device: str) -> list[Tensor]:
    """Query, key and value `[B, H, T, D]`: pulses in [0, 1], voltages about rest."""
    generator = torch.Generator().manual_seed(0)
    query = torch.rand(shape, generator=generator)
    return [x.to(device) for x in (query, *(0.45 + 0.2 * torch.randn(shape, generator=generator) for _ in range(2)))]


def forward(backend: str, tokens: int, sizes: dict[str, int], device: str, *, variant: str = CLEAN) -> Step:
    """The operator without gradients."""
    import aimc

    inputs = inputs_of((1, sizes["heads"], tokens, sizes["head_size"]), device)
    hardware = hardware_of(backend, sizes["window"], variant)

    @torch.no_grad()
    def step() -> Tensor:
        return aimc.gain_cell_attention(*inputs, hardware, **randomness_of(variant, device))

    return step


def forward_backward(backend: str, tokens: int, sizes: dict[str, int], device: str, *, variant: str = CLEAN) -> Step:
    """The operator and its gradients."""
    import aimc

    inputs = [x.requires_grad_() for x in inputs_of((1, sizes["heads"], tokens, sizes["head_size"]), device)]
    hardware = hardware_of(backend, sizes["window"], variant)

    def step() -> Tensor:
        out = aimc.gain_cell_attention(*inputs, hardware, **randomness_of(variant, device))
        return torch.cat([x.flatten() for x in torch.autograd.grad(out.square().sum(), inputs)])

    return step


def model_of(backend: str, sizes: dict[str, int], positions: int, device: str) -> Any:
    """A GPT-2 of random weights on arrays."""
    from transformers import GPT2Config, GPT2LMHeadModel

    import aimc

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=sizes["vocabulary"],
        n_positions=positions,
        n_embd=sizes["heads"] * sizes["head_size"],
        n_layer=sizes["layers"],
        n_head=sizes["heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # what transformers falls back to, with a warning
    model.to(device)
    aimc.convert(model, hardware_of(backend, sizes["window"]))
    return model


def decoding(backend: str, tokens: int, sizes: dict[str, int], device: str) -> Step:
    """One token after a prompt of so many; always the same one, so that both trees decode the same text."""
    import aimc

    model = model_of(backend, sizes, tokens + 4096, device).eval()
    cache = aimc.GainCellCache(model)
    prompt = torch.arange(tokens, device=device)[None] % sizes["vocabulary"]

    @torch.no_grad()
    def read(ids: Tensor) -> Tensor:
        return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    read(prompt)
    return lambda: read(prompt[:, :1])


def training_step(backend: str, tokens: int, sizes: dict[str, int], device: str) -> Step:
    """Forward, backward and AdamW of the model on so many tokens; the loss."""
    model = model_of(backend, sizes, tokens, device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.arange(tokens, device=device)[None] % sizes["vocabulary"]

    def step() -> Tensor:
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    return step


OPERATORS = {"forward": forward, "forward+backward": forward_backward}
VARIANTS = {
    f"{variant}{name}": partial(make, variant=variant)
    for variant in (NOISE, CHIP, SOFTMAX, PRUNED)
    for name, make in OPERATORS.items()
}
MAKERS: dict[str, Callable[..., Step]] = {
    **OPERATORS,
    **VARIANTS,
    "decoding": decoding,
    "training step": training_step,
}


def serve(sizes: dict[str, int], device: str) -> None:
    """Answer `[case, backend, tokens, repetitions]` with seconds and a digest of what was computed, with why
    it is unknown here, or with why it failed, until the end."""
    key, step = None, None
    for line in sys.stdin:
        *wanted, repetitions = json.loads(line)
        try:
            if key != wanted:
                step = None  # the old model goes before the new one comes
                key, step = wanted, MAKERS[wanted[0]](wanted[1], wanted[2], sizes, device)
            assert step is not None
            seconds = []
            for _ in range(repetitions):
                _finish(device)
                start = time.perf_counter()
                result = step()
                _finish(device)
                seconds.append(time.perf_counter() - start)
            exact = result.double()
            answer: dict[str, Any] = {"seconds": seconds, "digest": [exact.sum().item(), exact.norm().item()]}
        except Exception as error:  # any: the other cases should still be seen
            key, answer = None, {"unknown" if isinstance(error, UNKNOWN) else "failed": _said(error)}
        _answer(answer)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _answer(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=json.loads, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import aimc

    _answer({"tree": str(Path(aimc.__file__).parents[1])})
    serve(options.sizes, options.device)


if __name__ == "__main__":
    _main()
