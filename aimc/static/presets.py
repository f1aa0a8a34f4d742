"""Named aihwkit configurations of static tiles, each number with its source. aihwkit's users pass their own instead.

Sources:
    [N19] S. R. Nandakumar et al., "Phase-change memory models for deep learning training and inference", ICECS (2019):
    aihwkit's `PCMLikeNoiseModel`.
    [F25] D. F. Falcone et al., "All-in-one analog AI hardware: on-chip training and inference with
    conductive-metal-oxide/HfOx ReRAM devices" (2025): aihwkit's `ReRamCMONoiseModel`.
    [R23] M. J. Rasch et al., "Hardware-aware training for large-scale and diverse deep learning inference workloads
    using in-memory computing-based accelerators", Nature Communications (2023): aihwkit's `StandardHWATrainingPreset`.
    [L23] M. Le Gallo et al., "A 64-core mixed-signal in-memory compute chip based on phase-change memory for deep
    neural network inference", Nature Electronics (2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aimc.static.install import require_aihwkit

TILE_SIZE = 256
"""Inputs and outputs of one crossbar; a larger layer is split over several [L23]."""
CONVERTER_STEPS = 254.0
"""Steps of the 8-bit converters in front of and behind a crossbar [R23, L23]."""
OUTPUT_NOISE = 0.04
"""Standard deviation of one read, in units of the largest weight times the largest input [R23]."""
OUTPUT_BOUND = 10.0
"""Range of the ADC in the same units [R23]."""
INPUT_RANGE_DECAY = 0.01
"""How strongly an input range shrinks while hardly any input is clipped."""
TRAINING_NOISE = 0.06
"""Noise injected into weights while training, as a fraction of a tile's largest: [N19]'s error is 0.05 of it after a
day, compensated."""
CLIP_SIGMA = 2.5
"""Weights are clipped at so many of a tile's standard deviations while training: few outliers leave more range to the
many [R23]."""
PCM_G_MAX_US = 25.0
"""Largest conductance in microsiemens [N19]."""


def pcm() -> Any:
    """Phase-change memory: programming noise, conductance drift and 1/f noise as fitted to measured devices [N19],
    8-bit converters.

    Returns:
        An aihwkit `TorchInferenceRPUConfig`.

    Raises:
        MissingAihwkit: aihwkit is not installed.
    """
    require_aihwkit()
    from aihwkit.inference import PCMLikeNoiseModel

    return _inference_config(PCMLikeNoiseModel(g_max=PCM_G_MAX_US))


def reram() -> Any:
    """Filamentary ReRAM (conductive metal oxide on HfOx): programming noise and relaxation as fitted to measured
    devices [F25].

    Its conductances relax with the logarithm of time instead of drifting by a power law; converters as for :func:`pcm`.

    Raises:
        MissingAihwkit: aihwkit is not installed.
    """
    require_aihwkit()
    from aihwkit.inference import ReRamCMONoiseModel

    return _inference_config(ReRamCMONoiseModel())


def noiseless() -> Any:
    """Tiles that compute exactly and hold exactly what is written: the digital product by way of the tiles.

    Raises:
        MissingAihwkit: aihwkit is not installed.
    """
    require_aihwkit()
    from aihwkit.inference import PCMLikeNoiseModel
    from aihwkit.simulator.parameters.enums import WeightClipType, WeightModifierType, WeightRemapType

    config = _inference_config(PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0, drift_scale=0.0))
    config.forward.is_perfect = True
    config.modifier.type, config.clip.type, config.remap.type = (
        WeightModifierType.NONE,
        WeightClipType.NONE,
        WeightRemapType.NONE,
    )
    config.pre_post.input_range.enable = False
    return config


def _inference_config(noise_model: Any) -> Any:
    from aihwkit.inference import GlobalDriftCompensation
    from aihwkit.simulator.configs import TorchInferenceRPUConfig
    from aihwkit.simulator.parameters.enums import (
        BoundManagementType,
        NoiseManagementType,
        WeightClipType,
        WeightModifierType,
        WeightRemapType,
    )

    config = TorchInferenceRPUConfig()
    config.noise_model = noise_model
    config.drift_compensation = GlobalDriftCompensation()
    mapping = config.mapping
    mapping.weight_scaling_omega, mapping.weight_scaling_columnwise = 1.0, True
    mapping.max_input_size = mapping.max_output_size = TILE_SIZE
    reads = config.forward
    reads.inp_res = reads.out_res = CONVERTER_STEPS
    reads.out_noise, reads.out_bound = OUTPUT_NOISE, OUTPUT_BOUND
    reads.bound_management, reads.noise_management = (
        BoundManagementType.NONE,
        NoiseManagementType.NONE,
    )  # input ranges do it
    ranges = config.pre_post.input_range
    ranges.enable, ranges.decay = True, INPUT_RANGE_DECAY
    config.modifier.type, config.modifier.std_dev = WeightModifierType.ADD_NORMAL, TRAINING_NOISE
    config.modifier.rel_to_actual_wmax = True
    config.clip.type, config.clip.sigma = WeightClipType.LAYER_GAUSSIAN, CLIP_SIGMA
    config.remap.type = WeightRemapType.CHANNELWISE_SYMMETRIC
    return config


PRESETS: dict[str, Callable[[], Any]] = {"pcm": pcm, "reram": reram, "noiseless": noiseless}
"""Configurations by name."""
