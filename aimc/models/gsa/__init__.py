"""Gated Slot Attention: a decoder whose memory is m slots a head, digital or in gain cells, as a transformers model.

Importing it registers the model type `gsa`, so that `AutoModelForCausalLM` reads its folders. It imports `aimc.ops`
and below, and `aimc.nn`'s scalers.

Source: Y. Zhang et al., "Gated Slot Attention for Efficient Linear-Time Sequence Modeling", NeurIPS 2024, arXiv
2409.07146.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from aimc.models.gsa.arrays import SlotArrays
from aimc.models.gsa.cells import calibrate_slots, put_back, put_on_cells, set_cells, slot_arrays
from aimc.models.gsa.config import GSAConfig
from aimc.models.gsa.model import GSAForCausalLM, GSAModel

AutoConfig.register(GSAConfig.model_type, GSAConfig, exist_ok=True)
AutoModelForCausalLM.register(GSAConfig, GSAForCausalLM, exist_ok=True)

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
