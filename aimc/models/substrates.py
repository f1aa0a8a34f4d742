"""What parts of a model can be put on: each kind of analog hardware registers itself here, by the type of its config.

Conversion and checkpoints go by this list, so that they need not know what stands on it: a further kind is one file.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from transformers import PreTrainedModel

from aimc.models.mark import erase_mark, use_own_attention
from aimc.models.report import ConversionReport

PROVIDERS = ("aimc.models.gain_cells", "aimc.static.substrate")
"""Modules that register a substrate when they are imported; by name, because static tiles stand above this package."""


class Plan(Protocol):
    """A conversion that nothing speaks against any more; the model and its config are unchanged so far."""

    def put(self, model: PreTrainedModel, report: ConversionReport) -> None:
        """Carry it out, and say in the report what was replaced."""


class Substrate(Protocol):
    """One kind of hardware under a model."""

    @property
    def config_type(self) -> type:
        """Of the config that asks for it in :func:`aimc.convert`."""

    @property
    def record_key(self) -> str:
        """Where its record stands in `config.json`."""

    @property
    def child(self) -> str:
        """Name of the module, in each layer on it, that holds its tensors; those beside it are the digital model's."""

    def is_under(self, model: PreTrainedModel) -> bool:
        """Whether a part of the model is on it."""

    def plan(self, model: PreTrainedModel, config: Any, skip_layers: frozenset[int] | None) -> Plan:
        """Everything that can be refused is refused here; `skip_layers` is None where the user named none."""

    def take_out(self, model: PreTrainedModel) -> None:
        """Back to the digital modules, in place."""

    def read_record(self, record: Any) -> Any:
        """What :meth:`rebuild` needs, from a record in a `config.json`; `ValueError` where it is damaged or too new."""

    def rebuild(self, model: PreTrainedModel, read: Any) -> None:
        """Put a digital model on it as it was saved; the saved tensors come later."""

    def finish(self, model: PreTrainedModel, read: Any) -> None:
        """What a record says beside structure and tensors, once these are in place."""


_registered: dict[str, Substrate] = {}


def register(substrate: Substrate) -> None:
    """Add a kind of hardware."""
    _registered[substrate.record_key] = substrate


def substrates() -> list[Substrate]:
    """All kinds, in the order of :data:`PROVIDERS`: parts are put in place in this order, and taken out against it."""
    for provider in PROVIDERS:
        importlib.import_module(provider)
    return list(_registered.values())


def substrate_for(config: object) -> Substrate:
    """The kind of hardware that a config asks for.

    Raises:
        TypeError: no kind goes by this type.
    """
    for substrate in substrates():
        if isinstance(config, substrate.config_type):
            return substrate
    known = " or ".join(f"{s.config_type.__module__}.{s.config_type.__name__}" for s in substrates())
    raise TypeError(f"a {type(config).__name__} says nothing of what to put a model on; give a {known}")


def substrates_under(model: PreTrainedModel) -> list[Substrate]:
    """The kinds that a part of the model is on."""
    return [substrate for substrate in substrates() if substrate.is_under(model)]


def require_as_saved(model: PreTrainedModel) -> None:
    """Refuse a model whose config says that it is on hardware which is not there.

    Raises:
        ValueError: a plain loader has read a converted model's folder and left the arrays or tiles out, so what its
            weights were trained for is gone.
    """
    for substrate in substrates():
        if hasattr(model.config, substrate.record_key) and not substrate.is_under(model):
            raise ValueError(
                f"config.{substrate.record_key} says that this {type(model).__name__} is converted, and a plain loader"
                " has left the analog part out: its weights were trained for it, so every number would be wrong; load"
                " the folder with aimc.from_pretrained (then aimc.to_digital for its digital part)"
            )


def forget_stale_records(model: PreTrainedModel) -> None:
    """Drop records of hardware that the model is not on: its folder was read as a digital model's."""
    if not substrates_under(model):
        erase_mark(model.config)
        use_own_attention(model)
    for substrate in substrates():
        if not substrate.is_under(model) and hasattr(model.config, substrate.record_key):
            delattr(model.config, substrate.record_key)
