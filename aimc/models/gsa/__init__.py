"""Gated Slot Attention: a decoder whose memory is m slots a head, digital or in gain cells, as a transformers model.

`GSAForCausalLM` is an ordinary transformers model, which `AutoModelForCausalLM` knows; :func:`put_on_cells` puts its
slots into cells. It imports transformers, PyTorch, `aimc.ops` and below, `aimc.nn`'s scalers, and Mamba's recurrence.

Source: Y. Zhang et al., "Gated Slot Attention for Efficient Linear-Time Sequence Modeling", NeurIPS 2024, arXiv
2409.07146.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimc.models.gsa.arrays import SlotArrays
    from aimc.models.gsa.cells import calibrate_slots, put_back, put_on_cells, set_cells, slot_arrays
    from aimc.models.gsa.config import GSAConfig
    from aimc.models.gsa.model import GSAForCausalLM, GSAModel

_PUBLIC = {
    "GSAConfig": "config",
    "GSAForCausalLM": "model",
    "GSAModel": "model",
    "SlotArrays": "arrays",
    "calibrate_slots": "cells",
    "put_back": "cells",
    "put_on_cells": "cells",
    "set_cells": "cells",
    "slot_arrays": "cells",
}
__all__ = [
    "GSAConfig",
    "GSAForCausalLM",
    "GSAModel",
    "SlotArrays",
    "calibrate_slots",
    "put_back",
    "put_on_cells",
    "set_cells",
    "slot_arrays",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the config is registered before transformers has any models."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"aimc.models.gsa.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'aimc.models.gsa' has no attribute {name!r}")
