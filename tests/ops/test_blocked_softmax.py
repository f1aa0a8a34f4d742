"""The blocked operator with what stands between the arrays in digital: softmax, pruning, protection, corrections, full
scales of each head. Against the eager one, outputs and each gradient by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aimc import presets
from aimc.hardware import Array, Converter, Features, Hardware, Leakage, Noise, Protection, Pruning
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Affine, Scaling
from tests.ops.test_blocked import ALL_NOISE, CUBIC  # noqa: F401 (the cell of the presets)

NAMES = ("query", "key", "value", "query scale", "key scale", "value scale", "score gain")
SIGNED = {"v_min": -1.0, "coding": "sign_magnitude"}
COMPENSATED = Leakage(tau_s=1.0, token_time_s=0.003, compensate=True)
NORMALISED = Features(normalise_queries=True, normalise_keys=True, normalise_values=True)


def machine(*, levels: bool = False, window: int = 64, rows: int = 8, **changes: object) -> Hardware:
    n, m = (64, 256) if levels else (None, None)
    hardware = replace(
        presets.gain_cell_cmos(),
        activation="softmax",
        array=Array(window=window, rows=rows, saturation_qk=30.0, saturation_av=12.0),
        leakage=Leakage(tau_s=1.0, token_time_s=0.003),
        input_dac=Converter(n_levels=n, **SIGNED),
        storage_dac=Converter(n_levels=n, v_max=0.9),
        score_adc=Converter(n_levels=m, **SIGNED),
        probability_dac=Converter(n_levels=m),
        readout=Converter(n_levels=m, **SIGNED),
    )
    return replace(hardware, **changes)


def both(hardware: Hardware, T: int, *, H: int = 4, H_kv: int = 2, padded: bool = False, dtype=torch.float64):
    """Output and gradients by name from the eager and the blocked operator, same seeds."""
    B, D = 2, 8
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g, dtype=dtype)

    q, k, v = random(B, H, T, D) * 2.4 - 1.2, random(B, H_kv, T, D) * 1.1 - 0.1, random(B, H_kv, T, D) * 1.1 - 0.1
    scalers = [Affine(random(n) * 0.2 + 0.9, random(n) * 0.1) for n in (H, H_kv, H_kv)]
    gain, upstream = random(H) * 0.1 + 0.1, torch.randn(B, H, T, D, generator=g, dtype=dtype)
    of_heads = {"full_scale_qk": random(H) + 0.6, "full_scale_av": random(H) + 0.6, "threshold": random(H) * 0.4 - 0.2}
    features = hardware.features
    for name, wanted, n in (
        ("query_norm", features.normalise_queries, H),
        ("key_norm", features.normalise_keys, H_kv),
        ("value_norm", features.normalise_values, H_kv),
    ):
        if wanted:
            of_heads[name] = random(B, n, T) + 0.5
    of_heads["memory_key"] = Affine(random(H_kv) + 20.0, random(H_kv))
    padding = None
    if padded:
        padding = torch.zeros(B, T, dtype=torch.bool)
        padding[0, : min(5, T - 1)] = True
    results = []
    for backend in ("eager", "blocked"):
        x = [t.clone().requires_grad_() for t in (q, k, v, *(s.scale for s in scalers), gain)]
        scaling = Scaling(*(Affine(a, s.offset) for a, s in zip(x[3:6], scalers, strict=True)), x[6], **of_heads)
        out = gain_cell_attention(
            *x[:3],
            replace(hardware, backend=backend),
            scaling=scaling,
            key_padding=padding,
            chip=Chip(seed=3, layer=2),
            generator=torch.Generator().manual_seed(1),
        )
        grads = torch.autograd.grad(out, x, upstream, allow_unused=True)
        grads = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(x, grads, strict=True)]
        results.append({"out": out.detach()} | dict(zip(NAMES, grads, strict=True)))
    return results


def assert_agree(hardware: Hardware, T: int, *, tolerance: float = 1e-9, **kwargs: object) -> None:
    eager, blocked = both(hardware, T, **kwargs)
    assert eager["out"].abs().max() > 0.01
    for name, expected in eager.items():
        error = (blocked[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-3)  # a lone token has none
        assert error <= tolerance, f"{name}: relative error {error:.1e}"  # NaN fails, too


PRUNED = {"activation": "pruned_softmax"}
CASES: dict[str, dict[str, object]] = {
    "softmax": {},
    "no leakage": {"leakage": Leakage()},
    "equal charge": {"storage_dac": Converter(v_max=0.9, spacing="equal_charge")},
    "noise": {"noise": ALL_NOISE},
    "spread of retention": {"noise": Noise(tau_spread=0.3)},
    "protection": {"protection": Protection(n_sink=2, n_recent=5)},
    "sinks alone": {"protection": Protection(n_sink=3)},
    "age compensation": {"leakage": COMPENSATED},
    "age compensation, spread, protection": {
        "leakage": COMPENSATED,
        "noise": replace(ALL_NOISE, tau_spread=0.3),
        "protection": Protection(n_sink=1, n_recent=9),
    },
    "normalised": {"features": NORMALISED},
    "normalised queries": {"features": Features(normalise_queries=True)},
    "normalised, old, protected, equal charge": {
        "features": NORMALISED,
        "leakage": COMPENSATED,
        "protection": Protection(n_sink=2, n_recent=5),
        "storage_dac": Converter(v_max=0.9, spacing="equal_charge"),
    },
    "pruned": PRUNED | {"pruning": Pruning(kept_share=0.3)},
    "pruned by comparators, values alone": PRUNED
    | {
        "pruning": Pruning(select="threshold", recompute="values"),
        "noise": ALL_NOISE,
        "features": Features(normalise_queries=True),
    },
    "pruned, gone within a token": PRUNED
    | {"leakage": Leakage(tau_s=1.0, token_time_s=50.0), "protection": Protection(n_sink=2, n_recent=5)},
    "pruned and protected": PRUNED | {"protection": Protection(n_sink=2, n_recent=5)},
    "hard sigmoid, protected": {
        "activation": "hard_sigmoid",
        "input_dac": Converter(),
        "protection": Protection(n_sink=2, n_recent=5),
    },
}


@pytest.mark.parametrize("T", [7, 150])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_the_eager_operators(case: str, T: int) -> None:
    assert_agree(machine(**CASES[case]), T, padded=T > 1)


@pytest.mark.parametrize("T", [1, 40, 64])
@pytest.mark.parametrize("case", ["softmax", "pruned"])
def test_other_lengths(case: str, T: int) -> None:
    assert_agree(machine(**CASES[case]), T, padded=T > 1)


@pytest.mark.parametrize(("H", "H_kv"), [(1, 1), (3, 1), (4, 4)])
@pytest.mark.parametrize("case", ["softmax", "pruned", "normalised, old, protected, equal charge"])
def test_groups_of_heads(case: str, H: int, H_kv: int) -> None:
    assert_agree(machine(**CASES[case]), 100, H=H, H_kv=H_kv)


@pytest.mark.parametrize("case", ["softmax", "normalised, old, protected, equal charge", "pruned"])
def test_with_all_levels_hardly_an_output_moves(case: str) -> None:
    changes = dict(CASES[case])
    if "storage_dac" in changes:
        changes["storage_dac"] = replace(changes["storage_dac"], n_levels=16)
    eager, blocked = both(machine(levels=True, **changes), 150)
    moved = (eager["out"] - blocked["out"]).abs() > 1e-9
    assert moved.float().mean() < 1e-3


class _Sizes(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("case", ["softmax", "pruned", "normalised, old, protected, equal charge"])
def test_no_tensor_grows_with_the_square_of_the_tokens(case: str) -> None:
    from aimc.ops.blocked import engine
    from aimc.ops.call import Call
    from aimc.ops.heads import Heads

    def largest(T: int) -> int:
        hardware = machine(window=1024, rows=64, **CASES[case])
        x = [torch.rand(1, 1, T, 8) for _ in range(3)]
        norms = {f"{name}_norm": torch.ones(1, 1, T) for name in ("query", "key", "value")}
        scaling = Scaling(None, None, None, **(norms if hardware.features.normalises else {}))
        call = Call(*x, scaling, None, Heads(x[0], x[1], hardware, Chip(seed=0), torch.tensor(0)))
        with _Sizes() as sizes:
            engine.forward(call)
        return sizes.largest

    assert largest(4096) < 2.5 * largest(2048) < 2.5 * 2048 * 2048 / 4
