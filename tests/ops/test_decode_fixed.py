"""Decoding on fixed arrays: one graph, in the same memory, for every token. What a CUDA graph needs is shown without
one: `torch.compile` in one graph, without another compilation, meets no number that the host would have to wait for."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aimc import presets
from aimc.hardware import Array, Converter, Features, Hardware, Leakage, Noise, Normaliser, Protection
from aimc.ops.decode.arrays import KVArrays
from aimc.ops.decode.attention import decode
from aimc.ops.effects.noise import Chip
from aimc.ops.effects.random import Lanes
from aimc.ops.scaling import Scaling
from tests.ops.test_decode import ALL_NOISE, D, R, W, machine
from tests.ops.test_softmax import machine as softmax_machine

PROMPT, LENGTH = 3, 2 * W + 5
NORMALISED = Features(normalise_queries=True, normalise_keys=True, normalise_values=True)
COMPENSATED = Leakage(tau_s=1.0, token_time_s=0.2 / W, compensate=True)
CASES: dict[str, Hardware] = {
    "all noise": machine(noise=ALL_NOISE),
    "retention spread, no levels": machine(noise=Noise(tau_spread=0.3), storage_dac=Converter(v_max=0.9)),
    "normaliser": machine(normaliser=Normaliser(is_on=True, full_scale=4.0), noise=ALL_NOISE),
    "softmax, normalised, old": softmax_machine(noise=ALL_NOISE, features=NORMALISED, leakage=COMPENSATED),
}

RARE, SLOW = ("all noise", "retention spread, no levels", "normaliser"), pytest.mark.slow


def inputs() -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(2, n, LENGTH, D, generator=g) for n in (4, 2, 2))
    sizes = {"query_norm": 4, "key_norm": 2, "value_norm": 2}
    return [q, k, v], {name: torch.rand(2, n, LENGTH, generator=g) + 0.5 for name, n in sizes.items()}


def prompted(hardware: Hardware, x: list[torch.Tensor], scaling: Scaling) -> KVArrays:
    arrays = KVArrays(x[1], hardware, Chip(seed=1, layer=2), torch.Generator().manual_seed(5))
    first = slice(0, PROMPT)
    decode(*(part[:, :, first] for part in x), arrays, scaling=scaling.of_tokens(first))
    return arrays


def tensors_of(arrays: KVArrays) -> dict[str, int]:
    owners = {"": arrays} | {f"{array.name}.": cells for array, cells in arrays.cells.items()}
    return {
        prefix + name: x.data_ptr()
        for prefix, owner in owners.items()
        for name, x in vars(owner).items()
        if isinstance(x, torch.Tensor)
    }


@torch._dynamo.config.patch(error_on_recompile=True)
@torch.no_grad()
@pytest.mark.parametrize("case", [pytest.param(name, marks=SLOW if name in RARE else ()) for name in CASES])
def test_one_graph_does_for_every_token(case: str) -> None:
    torch._dynamo.reset()
    hardware, (x, norms) = CASES[case], inputs()
    scaling = Scaling(None, None, None, **(norms if hardware.features.normalises else {}))
    usual = prompted(hardware, x, scaling)
    fixed = deepcopy(usual)
    fixed.fix()

    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: Scaling) -> torch.Tensor:
        return decode(q, k, v, fixed, scaling=scaling)

    graph = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
    before = tensors_of(fixed)
    for t in range(PROMPT, LENGTH):
        at = slice(t, t + 1)
        of_token = [part[:, :, at].clone() for part in x]
        norms_of = scaling.of_tokens(at)
        torch.testing.assert_close(
            graph(*of_token, norms_of), decode(*of_token, usual, scaling=norms_of), atol=2e-5, rtol=1e-4
        )
    assert fixed.n_tokens == usual.n_tokens == LENGTH
    assert tensors_of(fixed) == before


@torch._dynamo.config.patch(error_on_recompile=True)
@torch.no_grad()
def test_time_passes_for_a_graph_that_is_there_already() -> None:
    torch._dynamo.reset()
    (x, _), nothing = inputs(), Scaling(None, None, None)
    usual = prompted(machine(), x, nothing)
    fixed = deepcopy(usual)
    fixed.fix()
    graph = torch.compile(lambda *token: decode(*token, fixed), backend="eager", fullgraph=True, dynamic=False)
    results = []
    for t in (PROMPT, PROMPT + 1):
        of_token = [part[:, :, t : t + 1].clone() for part in x]
        results.append(graph(*of_token))
        torch.testing.assert_close(results[-1], decode(*of_token, usual), atol=1e-5, rtol=1e-4)
        for arrays in (usual, fixed):
            arrays.wait(0.3)


class _NothingFromTheHost(TorchDispatchMode):
    """No number is brought to the device, which would have to be waited for, and no graph could do again."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.device.type != "meta"]
        if any(isinstance(x, torch.Tensor) and x.device.type == "meta" for x in tree_leaves(out)):
            assert not given or ("_to_copy" not in str(function) and all(x.ndim == 0 for x in given)), function
        return out


def _refused(*_: object, **__: object) -> None:
    raise AssertionError("a tensor is made of Python's numbers, and would be brought to the device")


@torch.no_grad()
@pytest.mark.parametrize("case", [*CASES, "levels at equal charge", "listed levels"])
def test_a_step_on_an_accelerator_waits_for_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta` no number can be asked for at all."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know that device
    levels = {
        "levels at equal charge": Converter(n_levels=8, v_max=0.9, spacing="equal_charge"),
        "listed levels": Converter(n_levels=3, v_max=0.9, spacing="listed", positions=[0.1, 0.4, 0.9]),
    }
    hardware = CASES[case] if case in CASES else machine(noise=ALL_NOISE, storage_dac=levels[case])
    x, norms = inputs()
    of_token = [part[:, :, :1].to("meta") for part in x]
    norms = {name: norm[..., :1].to("meta") for name, norm in norms.items()}
    scaling = Scaling(None, None, None, **(norms if hardware.features.normalises else {}))
    arrays = KVArrays(of_token[1], hardware, Chip(seed=1), torch.Generator())
    arrays._n_tokens = PROMPT  # a prompt would read numbers
    arrays.fix()
    decode(*of_token, arrays, scaling=scaling)  # brings what is kept
    before = tensors_of(arrays).keys()
    monkeypatch.setattr(torch, "tensor", _refused)
    with _NothingFromTheHost():
        out = decode(*of_token, arrays, scaling=scaling)
    assert out.shape == of_token[0].shape and tensors_of(arrays).keys() == before


def test_what_no_graph_can_follow_is_refused() -> None:
    (x, _), nothing = inputs(), Scaling(None, None, None)
    protected = prompted(machine(protection=Protection(n_sink=2)), x, nothing)
    with pytest.raises(ValueError, match="protection"):
        protected.fix()
    arrays = prompted(machine(), x, nothing)
    arrays.refresh_every = 4
    with pytest.raises(ValueError, match="refresh_every=4"):
        arrays.fix()
    with pytest.raises(ValueError, match="prompt"):
        KVArrays(x[1], machine(), Chip(seed=1)).fix()
    arrays.refresh_every = None
    arrays.fix()
    with torch.no_grad(), pytest.raises(ValueError, match="one token at a time"):
        decode(*(part[:, :, :2] for part in x), arrays)
    with pytest.raises(ValueError, match="no_grad"):
        decode(*(part[:, :, :1] for part in x), arrays)


@torch.no_grad()
def test_fixed_arrays_in_the_parallel_operators_sense() -> None:
    """Sub-tiles that no token has reached are not read, so their columns' errors are not there."""
    hardware = presets.gain_cell_cmos()
    hardware.array = Array(window=W, rows=R, saturation_qk=12.0, saturation_av=8.0)
    hardware = replace(hardware, noise=Noise(column_offset=0.5), leakage=Leakage())
    (x, _), nothing = inputs(), Scaling(None, None, None)
    usual = prompted(hardware, x, nothing)
    fixed = deepcopy(usual)
    fixed.fix()
    of_token = [part[:, :, PROMPT : PROMPT + 1] for part in x]
    torch.testing.assert_close(decode(*of_token, fixed), decode(*of_token, usual))


def test_noise_is_drawn_on_an_accelerator_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    seed, rows, columns = (torch.zeros(shape, dtype=torch.int64, device="meta") for shape in ((), (3, 1), (5,)))
    x = torch.zeros(3, 5, device="meta")
    monkeypatch.setattr(torch, "tensor", _refused)
    with _NothingFromTheHost():
        Lanes.of(seed, 1, rows).add_normal_(x, 1.0, columns)
