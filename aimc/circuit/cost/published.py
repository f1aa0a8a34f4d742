"""What others have published of cost, each number with its source: what the cost model is held to, and what it is
compared with.

Sources:
    [L25] N. Leroux et al., "Analog in-memory computing attention mechanism for fast and energy-efficient large language
    models", Nature Computational Science (2025), and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass

from aimc.hardware.presets import LONGEST_PULSE_S, STEP_LATENCY_S

FIRST_ARRAY_J = 1120e-12
"""Energy of the first array with its charge-to-pulse circuits, joule per token and head, at the published point
[L25]."""
SECOND_ARRAY_J = 700e-12
"""Energy of the second array with its charge-to-pulse circuits, joule per token and head [L25]."""
DACS_J = 330e-12
"""Energy of all DACs, joule per token and head [L25]."""
DIGITAL_J = 4000e-12
"""Energy of digital control and routing, joule per token and head; one number, not divided further [L25]."""
LATENCY_S = STEP_LATENCY_S
"""Latency of one attention step, all heads of a layer in parallel [L25]."""
AREA_M2 = 0.5e-6
"""Area of one head, 0.5 mm² [L25]."""
HEAD_SIZE, WINDOW, ROWS = 64, 1024, 64
"""D, W and R of the published point [L25]."""
INPUT_LEVELS, STORAGE_LEVELS, READOUT_LEVELS = 16, 8, 32
"""Levels of the published point [L25]."""
PULSE_S = LONGEST_PULSE_S
"""Longest pulse of the published point [L25]."""
LAYERS, HEADS = 12, 12
"""Layers and heads of the published model, GPT-2 small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFigure:
    """Energy and latency of the attention of one layer of 12 heads of 64 features over 1024 tokens, per token."""

    name: str
    energy_j: float
    """Joule per token, idle power subtracted."""
    latency_s: float
    """Time of one step of a batch ÷ `batch`, second: the inverse of a throughput. A single sequence waits
    `latency_s·batch` or longer."""
    batch: int
    """Sequences that share the step."""
    source: str


_GPU_SOURCE = "[L25], published code; float32"
GPU_FIGURES = (
    LayerFigure(
        name="RTX 4090",
        energy_j=7.178261876106262e-3,
        latency_s=2.2371650629793294e-05,
        batch=64,
        source=_GPU_SOURCE,
    ),
    LayerFigure(
        name="Jetson Nano",
        energy_j=3.2457683701063163e-3,
        latency_s=4.888500552624464e-4,
        batch=64,
        source=_GPU_SOURCE,
    ),
)
"""As published. They were not taken like the measurements of this project: the step of a batch of 64 is divided by 64,
everything is float32, and of the script's two branches one multiplies twice without a softmax, while the other,
`scaled_dot_product_attention`, sets `is_causal` for a single query, which then sees key 0 alone. Which of them gave the
numbers is not recorded with them."""
