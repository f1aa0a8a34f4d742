"""A model whose weights, gradients and optimiser state are spread over the processes of a run (PyTorch's FSDP2), and
its way to and from files in which it is whole: they are the same files as without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Spread a model over all processes, in place: layer by layer, what is outside of the layers together. It computes
    in the precision that it has, so the scalers of the arrays stay in float32.

    Args:
        model: whole, the same on every process.
        device: on which it computes.
    """
    model.to(device)  # type: ignore[arg-type]
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    kinds = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in kinds:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def give_back(model: nn.Module) -> None:
    """Leave each process its share alone; a pass without gradients leaves what is outside of the layers whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(x: Tensor) -> Tensor:
    """A tensor with the shares of all processes, which must all ask for it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor of all that a model's file holds, one after the other; all processes must ask."""
    give_back(model)
    for name, x in model.state_dict().items():
        yield name, whole(x.detach())


def whole_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """All that a model's file holds, on the CPU of the processes that `keep` it; tensors that are one stay one, so that
    they are written once."""
    found: dict[str, Tensor] = {}
    give_back(model)
    shares = dict(model.named_parameters(remove_duplicate=False))
    seen: dict[int, str] = {}
    for name, x in whole_tensors(model):
        first = seen.setdefault(id(shares[name]), name) if name in shares else name
        if keep:
            found[name] = found[first] if first != name else x.cpu().clone()
    return found


@torch.no_grad()
def take_over(model: nn.Module, sharded: nn.Module) -> None:
    """Give a whole model the weights of its spread copy, on every process."""
    own = model.state_dict()
    for name, x in whole_tensors(sharded):
        own[name].copy_(x)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimiser, as `optimizer.state_dict()` has it without sharding; on the first process, which
    the others help."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    numbers = _numbers(model, optimizer)
    known = cast(dict[str, Any], state.get("state", {}))
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [numbers[name] for name in names]}
        for group, names in zip(optimizer.param_groups, _names(model, optimizer), strict=True)
    ]
    return {"state": {numbers[name]: values for name, values in known.items()}, "param_groups": groups}


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any] | None) -> None:
    """Spread a whole state over an optimiser.

    Args:
        model: spread.
        optimizer: of its parameters, fresh.
        state: on the first process what :func:`optimizer_state` or an optimiser without sharding gave; None on others.
    """
    full: dict[str, Any] = {}
    if state is not None:
        names = {number: name for name, number in _numbers(model, optimizer).items()}
        groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
        full = {"state": {names[number]: values for number, values in state["state"].items()}, "param_groups": groups}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, full, options=options)


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of the parameters of each group."""
    give_back(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _numbers(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Number of each parameter in a state that goes by numbers."""
    return {name: i for i, name in enumerate(name for group in _names(model, optimizer) for name in group)}
