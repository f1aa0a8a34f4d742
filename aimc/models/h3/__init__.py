"""H3, Hungry Hungry Hippos (Fu, Dao et al., arXiv 2212.14052): state spaces in place of most attention layers.

`H3ForCausalLM` is an ordinary transformers model, which `AutoModelForCausalLM` knows; :func:`aimc.convert` puts its
attention layers onto arrays. It imports transformers, PyTorch and `aimc.models.recurrent`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimc.models.h3.config import SIZES, H3Config, published
    from aimc.models.h3.model import H3ForCausalLM, H3Model
    from aimc.models.h3.original import load_original

_PUBLIC = {
    "SIZES": "config",
    "H3Config": "config",
    "H3ForCausalLM": "model",
    "H3Model": "model",
    "load_original": "original",
    "published": "config",
}
__all__ = ["SIZES", "H3Config", "H3ForCausalLM", "H3Model", "load_original", "published"]


def __getattr__(name: str) -> Any:
    """Import on first use: the config is registered before transformers has any models."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"aimc.models.h3.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'aimc.models.h3' has no attribute {name!r}")
