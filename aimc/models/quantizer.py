"""aimc as a quantisation method of transformers: `from_pretrained(name, quantization_config=aimc.AnalogConfig(…))`.

Importing this module registers it. At its top it imports nothing of transformers but the registry, whose import leads
here (see `aimc/__init__.py`), before there are models; the rest comes when a model is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from aimc.models.mark import QUANT_METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from aimc.models.restoring import Reading

for _mapping in (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING):
    _mapping.pop(QUANT_METHOD, None)  # imported anew, the newest counts


@register_quantization_config(QUANT_METHOD)
class AnalogConfig(QuantizationConfigMixin):
    """What transformers' `from_pretrained` puts a model on while loading it; see :func:`aimc.convert`, which it calls.

    A model that was saved converted needs none: its folder says what it was on. A GGUF file is loaded first and
    converted with :func:`aimc.convert` then, for transformers takes that file for a quantisation method of its own.

    Args:
        configs: one for each kind of hardware, by type.
        hardware: one of them, an :class:`aimc.Hardware`, for its attention.
        static: one of them, an :class:`aimc.static.Static`, for its linear layers.
        skip_layers: indices of layers whose attention stays digital.

    Raises:
        TypeError: a config of another type.
        ValueError: two of one type, or layers to skip without a `Hardware`.
    """

    quant_method: Any = QUANT_METHOD

    def __init__(
        self,
        *configs: object,
        hardware: object = None,
        static: object = None,
        skip_layers: Collection[int] | None = None,
    ):
        self.configs = (*configs, *(config for config in (hardware, static) if config is not None))
        self.skip_layers = skip_layers
        if self.configs or skip_layers is not None:
            _module("conversion").by_substrate(self.configs, skip_layers)  # refused now, not after the weights are read

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """What stands in a `config.json`: the method's name. The hardware is in the records beside it."""
        fields = {name: value for name, value in config_dict.items() if name != "quant_method"}
        return super().from_dict(fields, return_unused_kwargs, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What stands in a `config.json`."""
        return {"quant_method": QUANT_METHOD}


@register_quantizer(QUANT_METHOD)
class AnalogQuantizer(HfQuantizer):
    """Puts a model onto analog hardware within transformers' `from_pretrained`.

    Nothing of it stays in the model, which is an ordinary one to trainers, casts and `save_pretrained`; its config
    has the mark again that brings its folder here.
    """

    def __init__(self, quantization_config: AnalogConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.configs, self.skip_layers = quantization_config.configs, quantization_config.skip_layers
        _module("hook")  # registers the attention that a marked config asks for, before the model is made from it
        self.files: Sequence[str] | None = None
        self.read: Reading = []

    @property
    def is_trainable(self) -> bool:
        """Arrays and tiles are trained as they are."""
        return True

    def is_serializable(self) -> bool:
        """They are saved as they are."""
        return True

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        """Refuse what can be refused before the weights are read."""
        restoring = _module("restoring")
        source = model.config.name_or_path
        places = [Path(str(source)), *(Path(file).parent for file in (checkpoint_files or ())[:1])]
        for place in dict.fromkeys(places):  # files of a hub, or of a folder inside of that folder, are elsewhere
            _module("manifest").require_intact(place)
            _module("trust").require_plain_names(place)
        _module("trust").require_plain_weights(model.config, source)
        self.read = restoring.read_records(model.config, source)
        if self.read and self.configs:
            raise ValueError(
                f"{source}: a converted model, which has hardware of its own; load it without AnalogConfig, then change"
                " that with aimc.set_hardware"
            )
        if not self.read and not self.configs:
            what = (
                "marked as converted, but no record says onto what; use another copy"
                if self.pre_quantized
                else ("a digital model, and AnalogConfig() names nothing to put it on; give it a hardware")
            )
            raise ValueError(f"{source}/config.json: {what}")
        if self.read:
            if checkpoint_files is None:
                raise ValueError(
                    f"{source}: the tensors of a converted model's arrays are read from its folder; leave state_dict"
                    " out, and call load_state_dict afterwards"
                )
            restoring.expect_analog_tensors(model)
        self.files = checkpoint_files
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Convert, or put back what was saved."""
        self.remove_quantization_config(model)  # with it, no cast, no trainer and no compiler would take the model
        for module in model.modules():
            config: Any = getattr(module, "config", None)
            if hasattr(config, "_is_quantized"):
                del config._is_quantized
        if self.read:
            _module("restoring").restore(model, self.read, self.files, model.config.name_or_path)
        else:
            _module("conversion").convert(model, *self.configs, skip_layers=self.skip_layers)
        return model


def _module(name: str) -> Any:
    """A module of this package that needs transformers' models."""
    return importlib.import_module(f"aimc.models.{name}")
