"""One layer's gain-cell attention as a module: scalers, arrays, scaler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from aimc.hardware import ConfigError, Hardware
from aimc.nn.features import FeatureMap
from aimc.nn.positions import position_gain, tokens_seen
from aimc.nn.scaler import AffineScaler, kept_precise
from aimc.ops.attention import Details, gain_cell_attention
from aimc.ops.decode.arrays import KVArrays
from aimc.ops.decode.attention import decode
from aimc.ops.effects.levels import line_of
from aimc.ops.effects.noise import Chip
from aimc.ops.scaling import Affine, Scaling

REFERENCES = ("score_full_scale", "readout_full_scale", "normaliser_full_scale")
"""Factors of full scales, of each query head."""
OF_HEADS = (*REFERENCES, "prune_threshold")
"""What calibration sets for each query head, `[H]`, where the hardware has it."""
PARTS = ("query", "key", "value", "output")
"""The four scalers of a layer, in the order the data meets them."""


class LayerCache(Protocol):
    """One layer's part of a cache, see :class:`aimc.nn.cache.GainCellLayer`."""

    def open(self, attention: GainCellAttention, key: Tensor) -> KVArrays:
        """The arrays that earlier tokens were written to."""

    def close(self) -> None:
        """The pass is over, or has failed."""


Observer = Callable[["GainCellAttention", dict[str, Tensor], Details | None], None]


class GainCellAttention(nn.Module):
    """Scale, clip, convert, store, multiply, activate, multiply, count, scale: attention of one layer on its own
    arrays.

    Where the hardware has them, each query head has a `pulse_threshold` θ and a `position_exponent` γ, `[H]`, which are
    trained (`hardware.threshold`, `hardware.position_gain`).

    With a softmax (`hardware.activation`) the layer has one more parameter, `score_gain` `[H]`: from charge of the
    first array in signal units to the logits of the softmax; and two straight lines that stand for its cells where
    tokens are digital, `memory_key` and `memory_value`. These are not trained, and neither is what calibration sets
    where the hardware has it: `features` (:class:`aimc.nn.features.FeatureMap`), `score_full_scale`,
    `readout_full_scale` and `normaliser_full_scale` `[H]` (`array.full_scales`), and `prune_threshold` `[H]`
    (`pruning.select = "threshold"`).

    Args:
        n_heads: query heads H.
        n_kv_heads: K/V heads; each has arrays of its own, shared by its group of query heads.
        hardware: shared by all layers of a model; change it with :func:`aimc.set_hardware`.
        layer: index of the layer in its model, part of every cell's address.
        sliding_window: tokens that this layer sees, where its model lets it see fewer than the hardware's window; None:
            all of them.
        n_layers: of its model: how many steps a token takes, where the hardware leaves the time of a token to the
            model. None: not known, and such hardware cannot leak.
        head_size: D, needed where the hardware centres or rotates features.

    Raises:
        ConfigError: `sliding_window` is longer than the hardware's sub-tile and no multiple of it, or features that the
            heads do not have.
    """

    score_full_scale: Tensor | None
    readout_full_scale: Tensor | None
    normaliser_full_scale: Tensor | None
    prune_threshold: Tensor | None

    _hardware: Hardware

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        hardware: Hardware,
        layer: int,
        sliding_window: int | None = None,
        n_layers: int | None = None,
        head_size: int | None = None,
    ):
        super().__init__()
        self.head_size = head_size
        self.layer = layer
        self.sliding_window = sliding_window
        self.n_layers = n_layers
        self.chip_seed: int | None = None
        """Which chip this runs on; None: chip 0. It matters only to what differs from cell to cell and from column to
        column."""
        self.generator: torch.Generator | None = None
        """Source of write and read noise; None: torch's global one."""
        self.draws: Tensor | None = None
        """Whose write and read noise the next passes meet, in place of the generator's, as
        :func:`aimc.ops.effects.noise.draws_of` has it; only where the tokens are all."""
        self.observer: Observer | None = None
        """Called with scaled q, k, v, the output, and (if `observe_details`) what happened inside."""
        self.observe_details = False
        self.layer_cache: LayerCache | None = None
        """What earlier tokens have written, and the next are written to; set by the model's cache for one pass. None:
        the tokens are all."""
        rest_v = hardware.cell.offset_v
        self.query_scaler = AffineScaler(n_heads)
        self.key_scaler = AffineScaler(n_kv_heads, offset=rest_v)
        self.value_scaler = AffineScaler(n_kv_heads, offset=rest_v)
        self.output_scaler = AffineScaler(n_heads)
        self.pulse_threshold: nn.Parameter | None = None
        self.position_exponent: nn.Parameter | None = None
        self.score_gain: nn.Parameter | None = None
        self.memory_key: AffineScaler | None = None
        self.memory_value: AffineScaler | None = None
        self.features: FeatureMap | None = None
        for name in OF_HEADS:
            self.register_buffer(name, None)
        self.hardware = hardware

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GainCellAttention:
        """Scalers stay in float32 when the model is cast to half precision; they move with it."""
        return super()._apply(kept_precise(fn), recurse)

    @property
    def hardware(self) -> Hardware:
        """What the model runs on, a copy; this layer's own arrays may be shorter, and their token time is filled in,
        see :attr:`machine`."""
        return copy.deepcopy(self._hardware)

    @hardware.setter
    def hardware(self, hardware: Hardware) -> None:
        hardware = copy.deepcopy(hardware)  # whoever gave it may go on to change it
        self.machine = self.machine_on(hardware)
        """The hardware of this layer: a layer with a sliding window uses that many slots of its arrays, and a token
        takes a step a layer of this model where the hardware leaves its time open."""
        if self.prune_threshold is not None and bool((self.prune_threshold == self._hardware.pruning.threshold).all()):
            self.prune_threshold = None  # the chip's, not calibrated: the new one takes its place
        self._hardware = hardware
        if not hardware.has_softmax:
            self.score_gain = self.memory_key = self.memory_value = None
        elif self.score_gain is None:
            self.score_gain = nn.Parameter(torch.ones_like(self.query_scaler.scale))
            self.memory_key, self.memory_value = self._line(hardware), self._line(hardware)
        for name, has in (("pulse_threshold", hardware.threshold), ("position_exponent", hardware.position_gain)):
            if not has:
                setattr(self, name, None)
            elif getattr(self, name) is None:
                setattr(self, name, nn.Parameter(torch.zeros_like(self.query_scaler.scale)))
        self._take_features(hardware)
        own_scales = hardware.array.full_scales != "global"
        compares = hardware.activation == "pruned_softmax" and hardware.pruning.select == "threshold"
        for name, wanted, first in (
            ("score_full_scale", own_scales, 1.0),
            ("readout_full_scale", own_scales, 1.0),
            ("normaliser_full_scale", own_scales and hardware.normaliser.is_on, 1.0),
            ("prune_threshold", compares, hardware.pruning.threshold),
        ):
            if not wanted:
                setattr(self, name, None)
            elif getattr(self, name) is None:
                setattr(self, name, torch.full_like(self.query_scaler.scale, first, requires_grad=False))

    def _take_features(self, hardware: Hardware) -> None:
        """Centres and scales stay as they were found, whichever of them are used."""
        found = self.features
        if not hardware.features.is_on:
            self.features = None
        elif found is None or found.features != hardware.features:
            self.features = self._feature_map(hardware).to(self.query_scaler.scale.device)
            if found is not None:
                self.features.load_state_dict(found.state_dict())

    def _feature_map(self, hardware: Hardware) -> FeatureMap:
        if self.head_size is None:
            raise ConfigError(
                "features: how many features a head has is not known here, so none can be centred or rotated; give"
                " GainCellAttention(…, head_size=…)"
            )
        return FeatureMap(len(self.key_scaler.scale), self.head_size, hardware.features)

    def machine_on(self, hardware: Hardware) -> Hardware:
        """What this layer's arrays would be on `hardware`: as many slots as its sliding window has tokens, in one
        sub-tile where that is shorter than one; and the time of a token, where that is left to the model.

        Raises:
            ConfigError: a sliding window of more than one sub-tile and no whole number of them, or features that these
                heads do not have.
        """
        if hardware.features.is_on:
            self._feature_map(hardware)
        leakage = hardware.leakage
        if leakage.token_time_s is None and self.n_layers is not None:
            token_time_s = self.n_layers * leakage.step_latency_s
            hardware = replace(hardware, leakage=replace(leakage, token_time_s=token_time_s))
        array, window = hardware.array, self.sliding_window
        if window is None or window >= array.window:
            return hardware
        rows = min(array.rows, window)
        if window % rows:
            raise ConfigError(
                f"array.rows={rows}: layer {self.layer} sees a sliding window of {window} tokens, which is"
                " no whole number of sub-tiles; choose array.rows that divides it"
            )
        return replace(hardware, array=replace(array, window=window, rows=rows))

    def _line(self, hardware: Hardware) -> AffineScaler:
        """A cell near its rest, or all of it where its levels lie at equal charge."""
        offset, slope = line_of(hardware)
        line = AffineScaler(len(self.key_scaler.scale), scale=slope, offset=offset).requires_grad_(False)
        return line.to(self.key_scaler.scale.device)

    def check_full_scales(self) -> None:
        """Raise where a head's full scale is no finite number above zero.

        Raises:
            ValueError: it is zero, negative or not finite, so every charge would be beyond it.
        """
        for name in REFERENCES:
            factors = getattr(self, name)
            if factors is None:
                continue
            bad = (~(factors.isfinite() & (factors > 0))).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"layer {self.layer}: {name} of head {bad[0]} is {float(factors[bad[0]]):g}, and a reference is a"
                    " finite charge above zero, or every charge would be beyond it; calibrate again with"
                    f" {'aimc.calibrate_ranges' if self.machine.has_softmax else 'aimc.fit_full_scales'}"
                )

    @property
    def has_fitted_counters(self) -> bool:
        """Whether a counter behind pulses has another full scale than the chip's (:func:`aimc.fit_full_scales`)."""
        factors = (self.readout_full_scale, self.normaliser_full_scale)
        return self.machine.fits_counters and any(x is not None and bool((x != 1).any()) for x in factors)

    def scaler(self, part: str) -> AffineScaler:
        """The scaler of one of :data:`PARTS`."""
        return getattr(self, f"{part}_scaler")

    def new_arrays(self, key: Tensor) -> KVArrays:
        """Empty arrays for keys like `[B, H_kv, T, D]`, as this layer's hardware, chip and noise have them."""
        return KVArrays(key, self.machine, self.chip, self.generator)

    @property
    def scaling(self) -> Scaling:
        """What is in front of the arrays, between them and beside them, as the operator takes it."""
        lines = [
            None if line is None else Affine(*(x.detach() for x in line.affine))
            for line in (self.memory_key, self.memory_value)
        ]
        return Scaling(
            self.query_scaler.affine,
            self.key_scaler.affine,
            self.value_scaler.affine,
            self.score_gain,
            pulse_threshold=self.pulse_threshold,
            memory_key=lines[0],
            memory_value=lines[1],
            full_scale_qk=self.score_full_scale,
            full_scale_av=self.readout_full_scale,
            full_scale_of_sum=self.normaliser_full_scale,
            threshold=self.prune_threshold,
        )

    def prepared(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Scaling]:
        """Query `[B, H, T, D]`, key and value `[B, H_kv, T, D]` of the model as the operator gets them: behind the
        freedoms of their features, with the scalers that are still to be applied."""
        if self.features is None:
            return (query, key, value), self.scaling
        parts, (query_norm, key_norm, value_norm) = self.features.before(query, key, value)
        return parts, self.scaling._replace(query_norm=query_norm, key_norm=key_norm, value_norm=value_norm)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding: Tensor | None = None) -> Tensor:
        """Attention of query `[B, H, T, D]` over key and value `[B, H_kv, T, D]`; bool `key_padding` `[B, T]`, True
        where padding.

        Returns:
            `[B, H, T, D]` in the dtype of `query`.
        """
        dtype = query.dtype
        (query, key, value), scaling = self.prepared(query, key, value)
        details = before = None
        result: Tensor | tuple[Tensor, Details]
        if self.layer_cache is not None:
            arrays = self.layer_cache.open(self, key)
            before = None if self.position_exponent is None else arrays.n_real.clone()
            result = decode(query, key, value, arrays, scaling=scaling, key_padding=key_padding)
        else:
            result = gain_cell_attention(
                query,
                key,
                value,
                self.machine,
                scaling=scaling,
                key_padding=key_padding,
                chip=self.chip,
                generator=self.generator,
                draws=self.draws,
                details=self.observe_details,
            )
        if isinstance(result, tuple):
            result, details = result
        if self.position_exponent is not None:
            window = self.machine.array.window
            seen = tokens_seen(query.shape[2], window, before, key_padding, result)
            result = result * position_gain(self.position_exponent, seen, window)
        out = self.output_scaler(result)
        if (
            self.observer is not None
        ):  # the operator scales on the way to the converters and keeps nothing: scale again to show it
            q, k, v = self.query_scaler(query), self.key_scaler(key), self.value_scaler(value)
            self.observer(self, {"query": q, "key": k, "value": v, "output": out}, details)
        return (out if self.features is None else self.features.after(out)).to(dtype)

    @property
    def chip(self) -> Chip:
        """This layer of the chosen chip."""
        return Chip(seed=self.chip_seed or 0, layer=self.layer)
