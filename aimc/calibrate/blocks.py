"""The attention blocks of a converted model beside those of the digital one: found, checked, and called alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from aimc.calibrate.observation import require_same_heads
from aimc.models.arrays import gain_cell_layers, hardware_of, has_arrays, n_layers_of
from aimc.models.families import AttentionLayer, attention_layers
from aimc.models.ranks import ALONE, Ranks
from aimc.nn.attention import GainCellAttention


@dataclass(slots=True, eq=False)
class Block:
    """One layer's attention block, projections included, in the model and in its digital origin."""

    layer: GainCellAttention
    student: nn.Module
    """The attention module of the model, which has `layer` as a child."""
    teacher: nn.Module
    """The same of the reference."""
    student_decoder: nn.Module
    """The decoder layer that the block is part of: norms, attention, feed-forward network."""
    teacher_decoder: nn.Module
    """The same of the reference."""
    arrays: list[nn.Parameter] = field(default_factory=list)
    """Trained, of the layer on arrays: scalers, and whatever else it has."""
    projections: list[nn.Parameter] = field(default_factory=list)
    """Trained, of the rest of the block."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that are trained."""
        return self.arrays + self.projections


def paired_blocks(model: PreTrainedModel, reference: PreTrainedModel) -> list[Block]:
    """The blocks of all layers on arrays, in order.

    Trained is every parameter of a block that requires a gradient and that no other module of the model shares.

    Raises:
        ValueError: a model that is not converted, a reference that is or that has another architecture, or a block in
            which nothing may be trained.
    """
    hardware_of(model)
    _check_reference(model, reference)
    teachers = {found.index: found for found in attention_layers(reference)}
    owners = _owners(model)
    blocks = []
    for name, layer in gain_cell_layers(model):
        teacher = teachers.get(layer.layer)
        _check_heads(layer, teacher)
        assert teacher is not None  # checked
        student = model.get_submodule(name.rpartition(".")[0])
        block = Block(
            layer, student, teacher.module, _decoder_layer(model, name), _decoder_layer(reference, teacher.name)
        )
        inside, of_arrays = set(student.modules()), set(layer.parameters())
        for parameter in student.parameters():
            if not parameter.requires_grad or not owners[parameter] <= inside:
                continue
            (block.arrays if parameter in of_arrays else block.projections).append(parameter)
        if not block.parameters:
            raise ValueError(
                f"layer {layer.layer}: no parameter of its attention may be trained (requires_grad is off, or other"
                " layers share them), so its output cannot be matched; call requires_grad_(True) on the model first"
            )
        blocks.append(block)
    return blocks


def _decoder_layer(model: nn.Module, name: str) -> nn.Module:
    """The module that a number names in the name of what lies inside it: `model.layers.3` of
    `model.layers.3.self_attn`."""
    parts = name.split(".")
    first_number = next(i for i, part in enumerate(parts) if part.isdigit())
    return model.get_submodule(".".join(parts[: first_number + 1]))


def _owners(model: nn.Module) -> dict[nn.Parameter, set[nn.Module]]:
    """Every parameter with the modules that hold it themselves."""
    owners: dict[nn.Parameter, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    return owners


def _check_reference(model: PreTrainedModel, reference: PreTrainedModel) -> None:
    if reference is model:
        raise ValueError(
            "model and reference are the same object, so there is nothing to match; pass the digital model, or make the"
            " converted one from a copy.deepcopy of it"
        )
    if has_arrays(reference):
        raise ValueError("the reference runs on arrays itself; pass the digital model that this one was converted from")
    for what, of in (
        ("token ids in its vocabulary", lambda config: config.vocab_size),
        ("features in its hidden states", lambda config: config.hidden_size),
    ):
        own, other = (of(x.config.get_text_config(decoder=True)) for x in (model, reference))
        if own != other:
            raise ValueError(
                f"the model has {own} {what} and the reference {other}, so the outputs of their attention cannot be"
                " compared; use the digital model it was converted from"
            )
    own, other = n_layers_of(model), n_layers_of(reference)
    if own != other:
        raise ValueError(
            f"the model has {own} layers and the reference {other}, so layer by layer they do different things; use the"
            " digital model it was converted from"
        )
    devices = [next(x.parameters()).device for x in (model, reference)]
    if devices[0] != devices[1]:
        raise ValueError(
            f"the model is on {devices[0]} and the reference on {devices[1]}, and each layer's input would travel;"
            f" move the reference with reference.to({str(devices[0])!r})"
        )
    half = next((p.dtype for p in model.parameters() if p.requires_grad and p.dtype.itemsize < 4), None)
    if half is not None:
        raise ValueError(
            f"the model's weights are {half}, in which small steps of training are rounded away; match in float32"
            " (model.float()) and cast afterwards"
        )


def _check_heads(layer: GainCellAttention, teacher: AttentionLayer | None) -> None:
    require_same_heads(layer, None if teacher is None else (teacher.n_heads, teacher.n_kv_heads))
    if teacher is not None and layer.head_size not in (None, teacher.head_size):
        raise ValueError(
            f"layer {layer.layer} has heads of {layer.head_size} features, and those of the reference have"
            f" {teacher.head_size}; use the digital model it was converted from"
        )


@dataclass(slots=True)
class Call:
    """What went into an attention block, and what came out."""

    inputs: dict[str, Any]
    """All arguments, by name."""
    output: Tensor
    """`[B, T, features]`, behind the output projection."""


def output_of(returned: Any) -> Tensor:
    """The attention output `[B, T, features]` in whatever an attention module returns."""
    return returned[0] if isinstance(returned, tuple) else returned


def student_output(block: Block, call: Call, mask: Tensor | None) -> Tensor:
    """The model's own block on the inputs of the reference's, `[B, T, features]`.

    Args:
        mask: `[B, T]` with 1 for tokens; None: all are. It replaces the mask that was made for digital attention.
    """
    dtype = block.parameters[-1].dtype
    inputs = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, call.inputs)
    return output_of(block.student(**inputs | {"attention_mask": mask}))


def relative_error(output: Tensor, target: Tensor, real: Tensor | None, ranks: Ranks = ALONE) -> Tensor:
    """Squared error of `[B, T, features]` over the power of the target, a scalar in float32.

    Args:
        output: of the block.
        target: what it should be.
        real: `[B, T]`, not zero where tokens are no padding; None: all.
        ranks: processes whose targets' power it is; their errors are what, together, makes the error.
    """
    target = target.float()
    error = (output.float() - target).square()
    power = target.square()
    if real is not None:
        error, power = error * real[..., None], power * real[..., None]
    return error.sum() / ranks.total(power.sum()).clamp(min=torch.finfo(torch.float32).tiny)


@contextmanager
def watching(modules: Sequence[nn.Module], seen: Callable[[int, Call], None]) -> Iterator[None]:
    """Call `seen(number in modules, what it was called with and gave)` whenever one of the modules has computed."""

    def hook(i: int, names: list[str]) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
            inputs = dict(zip(names, args, strict=False)) | kwargs
            seen(i, Call(inputs, output_of(returned)))

        return after

    with ExitStack() as stack:
        for i, module in enumerate(modules):
            names = list(inspect.signature(module.forward).parameters)
            handle = module.register_forward_hook(hook(i, names), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def learning(modules: Sequence[nn.Module], learn: Callable[[int, Call], None]) -> Iterator[None]:
    """Like :func:`watching`, inside a pass without gradients: each module computes with gradients, from inputs that
    have none, and what it gave is passed on without."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        torch.set_grad_enabled(True)  # the pass around it puts it back, also after an exception

    def after(module: nn.Module, args: tuple[Any, ...], returned: Any) -> Any:
        torch.set_grad_enabled(False)
        return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, returned)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(before).remove)
        stack.enter_context(watching(modules, learn))
        for module in modules:
            stack.callback(module.register_forward_hook(after).remove)
        yield


def run_decoder(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    """A pass without cache that ends before the vocabulary, whose logits nobody asks for."""
    model.base_model(**inputs, use_cache=False)
