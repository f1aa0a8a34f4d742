"""Putting linear layers of a model onto static tiles, and taking them off again."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aimc.models.modes import evaluating
from aimc.static.config import Static
from aimc.static.encoding import EncodingError, decode, encode
from aimc.static.install import require_aihwkit
from aimc.static.tiles import (
    STATIC_KEY,
    STATIC_VERSION,
    has_static,
    is_aihwkits_own,
    static_layers,
    write_static_record,
)

if TYPE_CHECKING:
    from aimc.static.layer import StaticLinear

LINEAR = (nn.Linear, Conv1D)
"""Layers that are one matrix; subclasses compute something else as well and stay digital."""


@dataclass(slots=True)
class StaticPlan:
    """Layers ready to be put in place; the model is unchanged so far."""

    layers: dict[str, StaticLinear] = field(default_factory=dict)
    """By full name."""
    parts_tied: bool = False
    """Whether head and embedding shared a matrix that one of them now has on tiles."""
    notes: list[str] = field(default_factory=list)


def plan(model: PreTrainedModel, static: Static) -> StaticPlan:
    """Build the layers on tiles that `static` asks for.

    Raises:
        MissingAihwkit: aihwkit is not installed.
        ValueError: nothing to convert, or a configuration whose tiles cannot run; the model is unchanged.
    """
    require_aihwkit()
    from aimc.static.layer import StaticLinear

    if has_static(model):
        raise ValueError(
            "this model is on static tiles already; change them with aimc.static.set_rpu_config, or go back with"
            " aimc.to_digital"
        )
    made = StaticPlan()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    chosen = {}
    for name, module in model.named_modules():
        if module is head:
            wanted = static.head
        elif module is embedding:
            wanted = static.embeddings
        else:
            wanted = type(module) in LINEAR and static.wants(name)
            if isinstance(module, LINEAR) and type(module) not in LINEAR:
                made.notes.append(
                    f"{name} is a {type(module).__name__}, which is more than one matrix: it stays digital"
                )
        if wanted:
            chosen[name] = module
    _check(model, static, head)
    for name in sorted(_never_called(model, chosen)):
        del chosen[name]
        made.notes.append(f"{name} is never called, its weights are read by the module around it: it stays digital")
    _check_choice(model, static, chosen)
    for name, module in chosen.items():
        config = static.config_of(name)
        encode(config)  # what cannot be saved is refused now, not after the training
        made.layers[name] = StaticLinear(module, config, name)
    made.notes += _tying(model, static, made, head, embedding)
    if any(layer.has_input_ranges for layer in made.layers.values()):
        made.notes.append(
            "the tiles' input ranges are not set yet: call aimc.static.calibrate_input_ranges(model, batches), or train"
        )
    return made


def _check(model: PreTrainedModel, static: Static, head: nn.Module | None) -> None:
    if static.head and head is None:
        raise ValueError(
            f"static.head=True: a {type(model).__name__} has no language-model head; leave it out, or pass the whole"
            " model"
        )
    if static.embeddings and type(model.get_input_embeddings()) is not nn.Embedding:
        raise ValueError(
            f"static.embeddings=True: this model's is a {type(model.get_input_embeddings()).__name__}, which is more"
            " than a look-up; leave it out"
        )


def _check_choice(model: PreTrainedModel, static: Static, chosen: dict[str, nn.Module]) -> None:
    """Refuse what would do nothing: a choice of no layer, and patterns that match none of it."""
    own = [name for name, module in model.named_modules() if is_aihwkits_own(module)]
    if not chosen and any(static.wants(name) for name in own):
        raise ValueError(
            f"static.layers={static.layers}: {own[0]} is aihwkit's own {type(model.get_submodule(own[0])).__name__}"
            " already, so nothing would be replaced; give the digital model, and let aimc.convert put it on tiles"
        )
    if not chosen:
        raise ValueError(
            f"static.layers={static.layers}: no linear layer has such a name, or none that is called, so nothing would"
            " be replaced; leave it out for every layer, or give patterns over names such as transformer.h.0.mlp.c_fc"
        )
    for setting, patterns in (("layers", static.layers or ()), ("overrides", static.overrides)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in chosen):
                raise ValueError(
                    f"static.{setting}: {pattern!r} is the name of no layer that goes onto tiles, so it would do"
                    " nothing; leave it out, or give a pattern over names such as transformer.h.0.mlp.c_fc"
                )


def _never_called(model: PreTrainedModel, chosen: dict[str, nn.Module]) -> set[str]:
    """Layers whose weights other modules read for themselves, such as Mamba's `dt_proj`: on tiles they would compute as
    before. What a pass of two tokens does not reach for another reason (experts) counts as called."""
    called: set[str] = set()
    around = {name.rpartition(".")[0] for name in chosen}
    names = chosen.keys() | around
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: called.add(name))
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        with evaluating(model), torch.no_grad(), torch.random.fork_rng():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except Exception:  # it is somebody's code; what cannot be tried goes onto tiles as it was asked for
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name in chosen if name not in called and name.rpartition(".")[0] in called}


def _tying(
    model: PreTrainedModel, static: Static, made: StaticPlan, head: nn.Module | None, embedding: nn.Module
) -> list[str]:
    if head is None or head.weight is not embedding.weight:
        return []
    if not (static.head or static.embeddings):
        return ["the language-model head shares its weights with the embedding: both stay digital"]
    made.parts_tied = True
    on_tiles = " and ".join(
        name for name, on in (("the head", static.head), ("the embedding", static.embeddings)) if on
    )
    return [
        f"the language-model head shared its weights with the embedding; {on_tiles} on tiles, each has a matrix of its"
        " own from now on "
        f"({embedding.weight.numel():,} more parameters)"  # type: ignore[operator, union-attr]
    ]


def put_in_place(model: PreTrainedModel, made: StaticPlan) -> None:
    """Replace the planned layers and note it in the model's config."""
    if made.parts_tied:
        _part(model, made)
    for name, layer in made.layers.items():
        _set(model, name, layer)
    setattr(model.config, STATIC_KEY, {"parted": made.parts_tied})
    write_static_record(model)


def take_out(model: PreTrainedModel) -> None:
    """The digital layers again, with the weights as they are now; head and embedding share theirs again if they are
    still the same."""
    parted = getattr(model.config, STATIC_KEY, {}).get("parted", False)
    for name, layer in list(static_layers(model)):
        _set(model, name, layer.to_digital())
    delattr(model.config, STATIC_KEY)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if parted and head is not None and bool((head.weight == embedding.weight).all()):
        model.config.tie_word_embeddings = True
        head.weight = embedding.weight
        _renew_tying(model)


def _part(model: PreTrainedModel, made: StaticPlan) -> None:
    """Give the head a copy of the matrix that it shares with the embedding."""
    model.config.tie_word_embeddings = False
    head: Any = model.get_output_embeddings()
    own = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    head.weight = own
    for layer in made.layers.values():
        if layer.digital is head:
            layer.weight = own
    _renew_tying(model)


def _renew_tying(model: PreTrainedModel) -> None:
    """Tell transformers which weights are shared now: it goes by a list that it makes with the model."""
    if hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def layers_of(record: dict[str, Any]) -> dict[str, Any]:
    """The aihwkit configuration of each layer, by name, as a record in `config.json` has them.

    Raises:
        EncodingError: a damaged record, or one of another version.
        MissingAihwkit: aihwkit is not installed.
    """
    require_aihwkit()
    if record.get("version") != STATIC_VERSION:
        raise EncodingError(
            f"{STATIC_KEY}.version={record.get('version')}: this aimc reads version {STATIC_VERSION}; install the one"
            " it was saved with"
        )
    try:
        found = {name: decode(record["configs"][index]) for name, index in record["layers"].items()}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EncodingError(f"{STATIC_KEY} is damaged ({type(error).__name__}: {error}); use another copy") from error
    from aihwkit.simulator.configs import InferenceRPUConfig

    for name, config in found.items():
        if not isinstance(config, InferenceRPUConfig):
            raise EncodingError(
                f"{STATIC_KEY} is damaged: {name} has a {type(config).__name__} for its tiles; use another copy"
            )
    return found


def rebuild(model: PreTrainedModel, configs: dict[str, Any], *, parted: bool) -> None:
    """Put the named layers onto tiles of these configurations, as they were saved.

    Raises:
        ValueError: a name that the model has no linear layer for.
    """
    from aimc.static.layer import StaticLinear

    modules, prefix = dict(model.named_modules()), f"{model.base_model_prefix}."
    # Saved with or without a head, loaded without or with one.
    others = {name: (name, name.removeprefix(prefix), prefix + name) for name in configs}
    configs = {next((x for x in others[name] if x in modules), name): config for name, config in configs.items()}
    for name in configs:
        if type(modules.get(name)) not in (*LINEAR, nn.Embedding):
            raise ValueError(
                f"{STATIC_KEY}.layers has {name}: this {type(model).__name__} has no such linear layer; use another"
                " copy"
            )
    for name, config in configs.items():
        _set(model, name, StaticLinear(modules[name], config, name))
    setattr(model.config, STATIC_KEY, {"parted": parted})
    write_static_record(model)


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
