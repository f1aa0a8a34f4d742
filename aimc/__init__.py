"""Emulating analog in-memory-computing attention, and training language models for it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Hardware": "aimc.hardware",
    "Noise": "aimc.hardware",
    "presets": "aimc.hardware.presets",
    "Chip": "aimc.ops.effects.noise",
    "gain_cell_attention": "aimc.ops.attention",
    "GainCellCache": "aimc.nn.cache",
    "convert": "aimc.models.conversion",
    "to_digital": "aimc.models.conversion",
    "from_pretrained": "aimc.models.checkpoint",
    "AnalogConfig": "aimc.models.quantizer",
    "load_pretrained": "aimc.models.pretrained",
    "load_tokenizer": "aimc.models.pretrained",
    "set_hardware": "aimc.models.arrays",
    "set_chip": "aimc.models.arrays",
    "initialise_scalers": "aimc.calibrate.statistics",
    "match_statistics": "aimc.calibrate.statistics",
    "match_outputs": "aimc.calibrate.outputs",
    "fit_projections": "aimc.calibrate.projections",
    "calibrate_ranges": "aimc.calibrate.ranges",
    "fit_full_scales": "aimc.calibrate.full_scales",
    "clip_fractions": "aimc.evaluate.clipping",
    "perplexity": "aimc.evaluate.perplexity",
    "agreement": "aimc.evaluate.agreement",
}
_PACKAGES = ("calibrate", "circuit", "evaluate", "hardware", "models", "nn", "ops", "plot", "static")
_MOVED = {
    "config": "aimc.hardware",
    "converter": "aimc.hardware.converter",
    "nonideality": "aimc.hardware.noise",
    "presets": "aimc.hardware.presets",
    "checkpoint": "aimc.models.checkpoint",
    "conversion": "aimc.models.conversion",
    "families": "aimc.models.families",
    "hf": "aimc.models.arrays",
    "llama2c": "aimc.models.llama2c",
    "ranges": "aimc.calibrate.ranges",
    "record": "aimc.calibrate.observation",
    "design": "aimc.evaluate.design",
    "explore": "aimc.evaluate.tradeoff",
    "plot_attention": "aimc.plot.attention",
    "plot_chip": "aimc.plot.chip",
    "plot_circuit": "aimc.plot.circuit",
    "plot_cost": "aimc.plot.cost",
}
"""Modules that lay here until version 0.1, and where each is now; the old names are kept for one version."""

__all__ = [*_PUBLIC, *_PACKAGES]


def __getattr__(name: str) -> Any:
    """Import on first use: `import aimc` stays light, transformers and matplotlib come only with what needs them."""
    if name in _PUBLIC:
        module = importlib.import_module(_PUBLIC[name])
        return module if module.__name__.endswith(f".{name}") and not hasattr(module, name) else getattr(module, name)
    if name in _PACKAGES:
        return importlib.import_module(f"aimc.{name}")
    if name in _MOVED:
        return _moved(name, stacklevel=3)
    raise AttributeError(f"module 'aimc' has no attribute {name!r}")


def _moved(name: str, stacklevel: int) -> ModuleType:
    """The module itself under its old name, told once: the name stands in `sys.modules` and here afterwards."""
    warnings.warn(f"aimc.{name} is {_MOVED[name]} now", DeprecationWarning, stacklevel=stacklevel)
    module = importlib.import_module(_MOVED[name])
    sys.modules[f"aimc.{name}"] = module
    globals().setdefault(name, module)
    return module


class _MovedModules(MetaPathFinder, Loader):
    """Finds and loads `import aimc.hf` and `from aimc.hf import …`, which ask no `__getattr__`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        return ModuleSpec(name, self) if package == "aimc" and module in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """An empty one, which :meth:`exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        _moved(module.__name__.removeprefix("aimc."), stacklevel=3)


sys.meta_path.append(_MovedModules())

_REGISTRIES = {
    "transformers.quantizers.auto": ("aimc.models.quantizer", None),
    "transformers.models.auto.configuration_auto": ("aimc.models.auto", "register_configs"),
}
"""Where transformers keeps its quantisation methods and configs, and what makes aimc's known there: a module whose
import does, or a function of it."""


class _BesideTransformers(MetaPathFinder):
    """Registers aimc as soon as a registry is imported, for importing it here would import transformers."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _REGISTRIES:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(name)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register(registry: str) -> None:
    module_name, function = _REGISTRIES[registry]
    module = importlib.import_module(module_name)
    if function is not None:
        getattr(module, function)()


sys.meta_path.insert(0, _BesideTransformers())
for _name in _REGISTRIES:
    if _name in sys.modules:
        _register(_name)


def _command() -> None:
    """The console command `aimc`: its code is in `aimc.train` once installed, in `train` beside `aimc` in a clone."""
    package = "aimc.train" if importlib.util.find_spec("aimc.train") else "train"
    try:
        command = importlib.import_module(f"{package}.cli")
    except ImportError as error:
        sys.exit(f"error: {error}")
    command.main()
