"""StripedHyena (Together, github.com/togethercomputer/stripedhyena): long convolutions and attention, layer by layer.

`StripedHyenaForCausalLM` is an ordinary transformers model with the published names of weights, which
`AutoModelForCausalLM` knows. It imports transformers, PyTorch and `aimc.models.recurrent`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimc.models.striped_hyena.config import StripedHyenaConfig
    from aimc.models.striped_hyena.model import StripedHyenaForCausalLM, StripedHyenaModel

_PUBLIC = {"StripedHyenaConfig": "config", "StripedHyenaForCausalLM": "model", "StripedHyenaModel": "model"}
__all__ = ["StripedHyenaConfig", "StripedHyenaForCausalLM", "StripedHyenaModel"]


def __getattr__(name: str) -> Any:
    """Import on first use: the config is registered before transformers has any models."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"aimc.models.striped_hyena.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'aimc.models.striped_hyena' has no attribute {name!r}")
