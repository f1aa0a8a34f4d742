"""A config that belongs to one model: transformers lets several models share the one that they were made from."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel


def take_own_config(model: PreTrainedModel) -> None:
    """Give a model, and each of its modules, a copy of the config: what is noted in it from now on, such as its
    hardware, is said of no other model."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        config = getattr(module, "config", None)
        if id(config) in copies:
            module.config = copies[id(config)]
