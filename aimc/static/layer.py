"""A linear layer whose weights are held by aihwkit's analog tiles. Importing this module imports aihwkit.

The layer's parameters stay those of the digital layer, in its layout and under its names: they are the targets that the
conductances are programmed to. Before each pass the tiles get them in their own units; once programmed, the tiles keep
what programming made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from aihwkit.nn.modules.base import AnalogLayerBase
from aihwkit.optim.context import AnalogContext
from aihwkit.simulator.parameters.enums import WeightClipType, WeightRemapType
from aihwkit.simulator.tiles.array import TileModuleArray
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from torch import Tensor, nn
from torch.nn.functional import one_hot

from aimc.static.encoding import encode

Part = tuple[Any, slice, slice]
"""A tile, and its outputs and inputs among those of the layer."""


class _PlainTile:
    """Laid over aihwkit's tile classes: a state dict of tensors alone, and copies that keep their own settings.

    aihwkit's own puts a dictionary with the pickled configuration among the tensors, and takes the configuration from
    there on loading.
    """

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return nn.Module.state_dict(self, *args, **kwargs)  # type: ignore[call-overload]

    def _load_from_state_dict(self, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, *args)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _renew_context(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Tiles compute in float32 whatever the model is cast to; they move with it."""

        def kept(x: Tensor) -> Tensor:
            moved = fn(x)
            return x.to(moved.device) if x.is_floating_point() else moved

        nn.Module._apply(self, kept, recurse)  # type: ignore[arg-type]
        tile: Any = self
        tile.tile.weight = kept(tile.tile.weight.detach())  # no parameter of its own, so it is not moved with them
        tile.device, tile.is_cuda = tile.tile.weight.device, tile.tile.weight.is_cuda
        return self


_PLAIN: dict[type, type] = {}


def _plain(tile: Any) -> Any:
    """The same tile with the plain state dict, its context out of the optimiser's sight and its weights no parameter of
    their own."""
    kind = type(tile)
    if kind not in _PLAIN:
        _PLAIN[kind] = type(kind.__name__, (_PlainTile, kind), {})  # aihwkit goes by the name
    tile.__class__ = _PLAIN[kind]
    tile._non_persistent_buffers_set.add("alpha")  # what drift compensation measured belongs to one programming
    _renew_context(tile)
    weight = tile.tile._parameters.pop("weight")
    tile.tile.weight = weight.detach()
    return tile


def _renew_context(tile: Any) -> None:
    """aihwkit's context is a parameter that holds the tile; as one of the model's it would be trained, counted and
    saved."""
    tile._parameters.pop("analog_ctx", None)
    tile.__dict__.pop("analog_ctx", None)
    context = AnalogContext(tile)
    context.use_torch_update = True
    tile._parameters.pop("analog_ctx", None)
    tile.__dict__["analog_ctx"] = context


class StaticLinear(AnalogLayerBase, nn.Module):
    """Linear, `Conv1D` or embedding of a digital model on static tiles; the bias is added digitally.

    An embedding is one column of its tiles, read with a one-hot input.

    Args:
        digital: the layer that this stands in for; its parameters are taken over, not copied.
        rpu_config: an aihwkit configuration, e.g. `TorchInferenceRPUConfig`; copied.
        name: full name in the model, for messages.

    Raises:
        ValueError: a configuration whose tiles cannot run here, or cannot do what this layer needs.
    """

    digital: Any
    """The digital layer, whose parameters are this one's; no child of it."""

    def __init__(self, digital: nn.Module, rpu_config: Any, name: str):
        super().__init__()
        self.name = name
        self.is_embedding = isinstance(digital, nn.Embedding)
        self.transposed = not isinstance(digital, nn.Linear)
        self.weight: nn.Parameter = digital.weight  # type: ignore[assignment]
        self.bias: nn.Parameter | None = getattr(digital, "bias", None)
        self.__dict__["digital"] = digital
        self.out_features, self.in_features = self.matrix.shape
        self.computes_digitally = False
        """True: the digital layer's own product, as if there were no tiles."""
        self.programmed = False
        """Whether the tiles hold conductances that were written to them, rather than their targets."""
        self.recorded: Any = None
        """The configuration as the model's record has it; None: there is no record."""
        self.analog_module = self.tiles_of(rpu_config)
        self.train(digital.training)
        self.rescale()
        self.analog_module.to(self.weight.device)
        self.register_state_dict_pre_hook(_check_record)

    def tiles_of(self, rpu_config: Any) -> nn.Module:
        """Tiles of a configuration for this layer's weights, which stay where they are.

        Raises:
            ValueError: it fits no such layer.
        """
        if self.bias is not None and not rpu_config.mapping.digital_bias:
            raise ValueError(
                f"{self.name}: mapping.digital_bias=False puts the bias on the crossbar, and here it is added"
                " digitally; set it to True"
            )
        make = rpu_config.get_default_tile_module_class(self.out_features, self.in_features)
        try:
            module = make(self.out_features, self.in_features, rpu_config, False)
        except RuntimeError as error:
            raise ValueError(
                f"{self.name}: aihwkit's compiled tiles, which {type(rpu_config).__name__} asks for, do not run here"
                f" ({error}); use TorchInferenceRPUConfig, whose tiles are pure PyTorch, or a build of aihwkit for this"
                " Python and torch"
            ) from error
        tiles = (
            [tile for inputs in module.array for tile in inputs] if isinstance(module, TileModuleArray) else [module]
        )
        if self.trainable_tiles(tiles):
            for tile in tiles:
                _plain(tile)
        return module

    @staticmethod
    def trainable_tiles(tiles: list[Any]) -> bool:
        """Whether all tiles are pure PyTorch ones, through which gradients reach the layer's parameters."""
        return all(isinstance(tile, TorchInferenceTile) for tile in tiles)

    @property
    def matrix(self) -> Tensor:
        """The weights `[out, in]`, whatever the digital layer's layout."""
        return self.weight.T if self.transposed else self.weight

    def parts(self) -> Iterator[Part]:
        """Every tile, with its place in the layer."""
        module: Any = self.analog_module
        if not isinstance(module, TileModuleArray):
            yield module, slice(0, self.out_features), slice(0, self.in_features)
            return
        first_in = 0
        for n_in, row in zip(module.in_sizes, module.array, strict=True):
            first_out = 0
            for n_out, tile in zip(module.out_sizes, row, strict=True):
                yield tile, slice(first_out, first_out + n_out), slice(first_in, first_in + n_in)
                first_out += n_out
            first_in += n_in

    @property
    def has_input_ranges(self) -> bool:
        """Whether the tiles clip their inputs to ranges of their own."""
        return any(getattr(tile, "input_range", None) is not None for tile in self.tiles)

    @property
    def tiles(self) -> list[Any]:
        """The tiles in order."""
        return [tile for tile, _, _ in self.parts()]

    def forward(self, x: Tensor) -> Tensor:
        """`[…, in]`, or token ids `[…]` of an embedding, to `[…, out]` in the dtype of the weights' inputs.

        Raises:
            RuntimeError: training tiles that are programmed, or compiled.
        """
        if self.computes_digitally:
            self._hand_over()
            return self.digital(x)
        if self.training and self.programmed:
            raise RuntimeError(
                f"{self.name}: programmed tiles cannot be trained, their targets are not what they hold; call"
                " aimc.static.unprogram(model)"
            )
        dtype = self.weight.dtype if self.is_embedding else x.dtype
        if self.is_embedding:
            x = one_hot(x.long(), self.in_features)
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, self.in_features).float()
            if not self.programmed:
                self._load()
            out = self.analog_module(flat)
            if not self.programmed:
                self._let_go()
            if self.bias is not None:
                out = out + self.bias.float()
        return out.reshape(*x.shape[:-1], self.out_features).to(dtype)

    def _hand_over(self) -> None:
        """The digital layer gets the parameters as they are now: `load_state_dict(assign=True)` and others replace
        them."""
        self.digital.weight = self.weight
        if self.bias is not None:
            self.digital.bias = self.bias

    def _load_from_state_dict(self, *args: Any) -> None:
        """Other targets: what was programmed of the old ones goes."""
        super()._load_from_state_dict(*args)
        if self.programmed:
            self.unprogram()

    def _load(self) -> None:
        """Give each tile its targets, in its own units; gradients flow back to the layer's weights."""
        matrix = self.matrix.float()
        for tile, rows, columns in self.parts():
            if isinstance(tile, TorchInferenceTile):
                tile.tile.weight = _in_tile_units(tile, matrix[rows, columns])
            elif self.training:
                raise RuntimeError(
                    f"{self.name}: gradients do not pass aihwkit's compiled tiles to the layer's weights; train on"
                    " TorchInferenceRPUConfig"
                )
            else:
                tile.set_weights(matrix[rows, columns].detach())

    def _let_go(self) -> None:
        """The tiles keep no part of a graph of gradients."""
        for tile in self.tiles:
            if isinstance(tile, TorchInferenceTile):
                tile.tile.weight = tile.tile.weight.detach()

    @torch.no_grad()
    def rescale(self) -> None:
        """Choose the output scales anew, by the configuration's mapping: the largest weight becomes the largest
        conductance."""
        matrix = self.matrix.float()
        for tile, rows, columns in self.parts():
            tile.set_weights(matrix[rows, columns])

    @torch.no_grad()
    def set_rpu_config(self, rpu_config: Any) -> None:
        """Tiles of another configuration for the same weights; input ranges stay where both have them.

        Raises:
            ValueError: as for a new layer; this one is then unchanged.
        """
        self.take_tiles(self.tiles_of(rpu_config))

    @torch.no_grad()
    def take_tiles(self, tiles: nn.Module) -> None:
        """Put the weights onto tiles that :meth:`tiles_of` has made; input ranges stay where both have them."""
        of_input = ("input_range", "input_range_update_idx")
        before = [tuple(getattr(tile, name, None) for name in of_input) for tile in self.tiles]
        self.analog_module = tiles
        self.unprogram()
        self.train(self.training)
        self.rescale()
        self.analog_module.to(self.weight.device)
        if self.has_input_ranges and len(before) == len(self.tiles):
            for tile, (value, n_seen) in zip(self.tiles, before, strict=True):
                if value is not None:
                    tile.set_input_range(value)
                    tile.input_range_update_idx.copy_(n_seen)  # or aihwkit begins anew, from its next batch

    @torch.no_grad()
    def post_update_step(self) -> None:
        """What the configuration asks for after each optimiser step: clip the weights, then choose scales anew."""
        for tile, rows, columns in self.parts():
            if not isinstance(tile, TorchInferenceTile):
                continue
            config, own = tile.rpu_config, self.matrix[rows, columns]
            tile.tile.weight = _in_tile_units(tile, own.float()).clone()
            if config.clip.type != WeightClipType.NONE:
                before = tile.tile.weight.clone()
                tile.tile.clip_weights(config.clip)
                clipped = tile.tile.weight != before
                own[clipped] = _in_layer_units(tile, tile.tile.weight)[clipped].to(own.dtype)
            if config.remap.type != WeightRemapType.NONE:
                learned = tile.get_learned_out_scales()
                if learned is not None:
                    own.mul_(learned.view(-1, 1))  # remapping takes them into the weights and starts them at 1 again
                scales = tile.tile.remap_weights(config.remap, tile.get_scales())
                tile.set_scales(torch.where(scales == 0, torch.ones_like(scales), scales))

    @torch.no_grad()
    def program_analog_weights(self, noise_model: Any = None) -> None:
        """Write the targets to the conductances, with programming noise; what aihwkit's `program_analog_weights(model)`
        calls too.

        Raises:
            RuntimeError: the layer is being trained.
        """
        if self.training:
            raise RuntimeError(f"{self.name}: tiles are programmed for inference; call model.eval() first")
        self._load()
        for tile in self.tiles:
            if isinstance(tile, TorchInferenceTile):
                tile.tile.weight = tile.tile.weight.detach().clone()
            tile.program_weights(from_reference=False, noise_model=noise_model)
        self.programmed = True

    @torch.no_grad()
    def drift_analog_weights(self, t_inference: float = 0.0) -> None:
        """Let the programmed conductances drift until `t_inference` seconds after programming; programs them first if
        need be."""
        if not self.programmed:
            self.program_analog_weights()
        for tile in self.tiles:
            tile.drift_weights(t_inference)

    @torch.no_grad()
    def unprogram(self) -> None:
        """Back to the targets."""
        self.programmed = False
        for tile in self.tiles:
            tile.reference_combined_weights = tile.programmed_weights = tile.drift_noise_parameters = None
            tile.drift_baseline = tile.drift_readout_tensor = None
            tile.alpha = torch.ones(1, device=self.weight.device)

    @torch.no_grad()
    def get_weights(self, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The weights `[out, in]` that the layer aims at, learned output scales included, and the bias; copies on the
        CPU."""
        weight = self.matrix.float().clone()
        for tile, rows, columns in self.parts():
            learned = tile.get_learned_out_scales()
            if learned is not None and not bool((learned == 1).all()):
                weight[rows, columns] *= learned.view(-1, 1)
        return weight.cpu(), None if self.bias is None else self.bias.detach().clone().cpu()

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> None:
        """Take other weights `[out, in]` and bias as targets, with scales chosen anew."""
        self.matrix.copy_(weight)
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)
        self.rescale()

    @torch.no_grad()
    def to_digital(self) -> nn.Module:  # type: ignore[override]
        """The digital layer with the weights as they are now: to the bit, unless output scales were learned."""
        weight, _ = self.get_weights()
        if not torch.equal(weight, self.matrix.float().cpu()):
            self.matrix.copy_(weight)
        self._hand_over()
        return self.digital.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None},"
            f" tiles={len(self.tiles)}"
        )


def _check_record(layer: StaticLinear, *_: Any) -> None:
    """Refuse to save weights beside a configuration that is not the tiles'."""
    if layer.recorded is not None and any(encode(tile.rpu_config) != layer.recorded for tile in layer.tiles):
        raise ValueError(
            f"{layer.name}: the configuration of its tiles was changed since the model's record of it was written, and"
            " a file would hold the old one; call aimc.static.write_static_record(model), or change configurations"
            " with aimc.static.set_rpu_config"
        )


def _in_tile_units(tile: Any, weight: Tensor) -> Tensor:
    scales = tile.get_mapping_scales()
    return weight.view_as(weight) if scales is None else weight / scales.view(-1, 1)


def _in_layer_units(tile: Any, weight: Tensor) -> Tensor:
    scales = tile.get_mapping_scales()
    return weight if scales is None else weight * scales.view(-1, 1)
