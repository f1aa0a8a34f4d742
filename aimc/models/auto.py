"""The architectures that transformers lacks, known to its `AutoConfig`, `AutoModel` and `AutoModelForCausalLM`.

Configs are told as soon as transformers' own are there (see `aimc/__init__.py`), so a folder with such a model loads
like any other. Models are told when the first config of their kind is made: transformers imports its table of models
while it is half imported itself, too early for a model.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where an architecture is."""

    package: str
    """With the modules `config` and `model`."""
    config: str
    """Class of its config."""
    base: str
    """Class of its decoder."""
    causal: str
    """Class with a head over the vocabulary."""


ARCHITECTURES = {
    "gsa": Architecture("aimc.models.gsa", "GSAConfig", "GSAModel", "GSAForCausalLM"),
    "h3": Architecture("aimc.models.h3", "H3Config", "H3Model", "H3ForCausalLM"),
    "stripedhyena": Architecture(
        "aimc.models.striped_hyena", "StripedHyenaConfig", "StripedHyenaModel", "StripedHyenaForCausalLM"
    ),
}
"""By transformers' `model_type`."""


def register_configs() -> None:
    """Tell `AutoConfig`."""
    from transformers.models.auto.configuration_auto import AutoConfig

    for model_type, found in ARCHITECTURES.items():
        config = getattr(importlib.import_module(f"{found.package}.config"), found.config)
        AutoConfig.register(model_type, config, exist_ok=True)


@cache
def register_model(model_type: str) -> None:
    """Tell `AutoModel` and `AutoModelForCausalLM`; each config of :data:`ARCHITECTURES` calls it when it is made."""
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM

    found = ARCHITECTURES[model_type]
    config = getattr(importlib.import_module(f"{found.package}.config"), found.config)
    model = importlib.import_module(f"{found.package}.model")
    AutoModel.register(config, getattr(model, found.base), exist_ok=True)
    AutoModelForCausalLM.register(config, getattr(model, found.causal), exist_ok=True)
