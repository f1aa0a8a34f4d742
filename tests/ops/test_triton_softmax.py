"""`backend='triton'` with what stands between the arrays in digital: softmax, protection, corrections, levels at equal
charge. Against the eager operator, outputs and each gradient by name."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, which is inside the first call

from dataclasses import replace

from aimc.hardware import Array, Converter, Features, Hardware, Leakage, Normaliser, Protection
from aimc.ops.attention import gain_cell_attention
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Affine, Scaling
from aimc.ops.triton.check import check_triton
from tests.ops.test_blocked_softmax import NORMALISED
from tests.ops.test_blocked_softmax import machine as of_softmax
from tests.ops.test_triton import ALL_NOISE, DEVICE, MORE

pytest.importorskip("triton", reason="the triton backend needs the package triton")

NAMES = ("query", "key", "value", "query scale", "key scale", "value scale", "of the activation")
COMPENSATED = Leakage(tau_s=1.0, token_time_s=0.004, compensate=True)
PROTECTED = Protection(n_sink=2, n_recent=5)


def machine(*, levels: bool = False, **changes: object) -> Hardware:
    """The other tests' with smaller arrays that leak faster."""
    array = Array(window=32, rows=16, saturation_qk=20.0, saturation_av=14.0)
    return of_softmax(levels=levels, **({"array": array, "leakage": Leakage(tau_s=1.0, token_time_s=0.004)} | changes))


def both(hardware: Hardware, T: int, *, B: int = 1, H: int = 1, H_kv: int = 1, D: int = 16, n_padded: int = 0):
    """Output and gradients by name from the eager operator and the kernels, same seeds."""
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g)

    q, k, v = random(B, H, T, D) * 2.4 - 1.2, random(B, H_kv, T, D) * 1.1 - 0.1, random(B, H_kv, T, D) * 1.1 - 0.1
    scalers = [Affine(random(n) * 0.2 + 0.9, random(n) * 0.1) for n in (H, H_kv, H_kv)]
    gain, upstream = random(H) * 0.1 + 0.1, torch.randn(B, H, T, D, generator=g)
    of_heads = {"full_scale_qk": random(H) + 0.6, "full_scale_av": random(H) + 0.6}
    for name, wanted, n in (
        ("query_norm", hardware.features.normalise_queries, H),
        ("key_norm", hardware.features.normalise_keys, H_kv),
        ("value_norm", hardware.features.normalise_values, H_kv),
    ):
        if wanted:
            of_heads[name] = random(B, n, T) + 0.5
    line = random(H_kv) + 20.0, random(H_kv)
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[0, :n_padded] = True
    trained = "score" if hardware.has_softmax else "pulse_threshold"
    results = []
    for backend in ("eager", "triton"):
        x = [t.to(DEVICE, copy=True).requires_grad_() for t in (q, k, v, *(s.scale for s in scalers), gain)]
        scalers_here = (Affine(a, s.offset.to(DEVICE)) for a, s in zip(x[3:6], scalers, strict=True))
        here = {name: t.to(DEVICE) for name, t in of_heads.items()}
        here["memory_key"] = Affine(*(t.to(DEVICE) for t in line))
        out = gain_cell_attention(
            *x[:3],
            replace(hardware, backend=backend),
            scaling=Scaling(*scalers_here, **{trained: x[6]}, **here),
            key_padding=padding.to(DEVICE) if n_padded else None,
            chip=Chip(seed=3, layer=2),
            generator=torch.Generator().manual_seed(1),
        )
        grads = torch.autograd.grad(out, x, upstream.to(DEVICE))
        results.append({"out": out.detach()} | dict(zip(NAMES, grads, strict=True)))
    return results


def assert_agree(hardware: Hardware, T: int, *, tolerance: float = 1e-5, **kwargs: int) -> None:
    eager, triton = both(hardware, T, **kwargs)
    assert eager["out"].abs().max() > 0.01
    for name, expected in eager.items():
        allowed = tolerance if expected.ndim == 4 else 30 * tolerance  # a sum over tokens cancels
        error = (triton[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
        assert error <= allowed, f"{name}: relative error {error:.1e}"  # NaN fails, too


CASES: dict[str, dict[str, object]] = {
    "softmax": {},
    "no leakage": {"leakage": Leakage()},
    "noise": {"noise": ALL_NOISE},
    "leaks to ground": {"leakage": Leakage(tau_s=1.0, token_time_s=0.004, target_v=0.0)},
    "protection": {"protection": PROTECTED},
    "sinks alone": {"protection": Protection(n_sink=3)},
    "newest alone, more than a sub-tile": {"protection": Protection(n_recent=20)},
    "age compensation": {"leakage": COMPENSATED},
    "normalised": {"features": NORMALISED},
    "normalised queries": {"features": Features(normalise_queries=True)},
    "normalised, old, protected, equal charge, noise": {
        "features": NORMALISED,
        "leakage": COMPENSATED,
        "protection": PROTECTED,
        "storage_dac": Converter(v_max=0.9, spacing="equal_charge"),
        "noise": ALL_NOISE,
    },
    "spread of retention, normalised, protected, noise": {
        "noise": replace(ALL_NOISE, tau_spread=0.3),
        "leakage": Leakage(tau_s=1.0, token_time_s=0.0005),
        "features": NORMALISED,
        "protection": PROTECTED,
    },
    "hard sigmoid, protected": {"activation": "hard_sigmoid", "protection": PROTECTED, "threshold": True},
    "hard sigmoid, protected, normaliser": {
        "activation": "hard_sigmoid",
        "protection": PROTECTED,
        "normaliser": Normaliser(is_on=True, full_scale=8.0, counter=Converter(v_max=0.9)),
        "threshold": True,
    },
}
FAST = ("normalised, old, protected, equal charge, noise", "hard sigmoid, protected, normaliser")


@pytest.mark.parametrize("case", [pytest.param(name, marks=() if name in FAST else MORE) for name in CASES])
def test_outputs_and_gradients_are_the_eager_operators(case: str) -> None:
    assert_agree(machine(**CASES[case]), 40, n_padded=3)


@MORE
@pytest.mark.parametrize("T", [1, 16, 33])
def test_other_lengths(T: int) -> None:
    assert_agree(machine(protection=PROTECTED), T)


@MORE
def test_groups_of_heads_and_padding_of_one_text_among_others() -> None:
    hardware = machine(protection=PROTECTED, features=NORMALISED)
    assert_agree(hardware, 34, B=2, H=2, H_kv=1, n_padded=19)


@MORE
def test_with_all_levels_hardly_an_output_moves() -> None:
    storage = Converter(n_levels=16, v_max=0.9, spacing="equal_charge")
    eager, triton = both(machine(levels=True, storage_dac=storage, leakage=COMPENSATED), 50)
    moved = (eager["out"] - triton["out"]).abs() > 1e-5
    assert moved.float().mean() < 3e-3


def test_the_cases_clip_scores_and_counters_and_not_everything() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(1, 1, 50, 16, generator=g) * a - b for a, b in ((2.4, 1.2), (1.1, 0.1), (1.1, 0.1)))
    hardware, scaling = machine(backend="eager"), Scaling(None, None, None, torch.tensor([0.15]))
    details = gain_cell_attention(q, k, v, hardware, scaling=scaling, details=True)[1]
    scores, counts = details.S / hardware.array.saturation_qk, details.A[:, :, 20:]
    assert 0.005 < (scores.abs() > 1).float().mean() < 0.5
    assert 0.005 < (counts.abs() == 1).float().mean() < 0.5


def test_pruning_is_refused_by_name() -> None:
    reason = check_triton((1, 1, 50, 16), torch.float32, DEVICE, machine(activation="pruned_softmax"))
    assert reason is not None and "pruned_softmax" in reason and "blocked" in reason
