"""What one run of the benchmark measures: shapes, dtype, device, budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from aimc import presets
from aimc.hardware import Hardware, Noise

PRESET = "gain_cell_cmos"
"""The published cell with leakage and 16/8/32 levels; a name in :mod:`aimc.presets`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Shapes and budget of one run; the defaults are the shapes of the speed table."""

    tokens: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    """T of the operator cases."""
    window: int = 1024
    """W of every case, tokens that the arrays hold."""
    other_windows: tuple[int, ...] = (256, 4096)
    """Further W of forward, at T = `other_windows_tokens` if that is among `tokens`."""
    other_windows_tokens: int = 4096
    """T at which `other_windows` are measured."""
    eager_tokens: int = 2048
    """Largest T at which the eager operator is timed, and at which all heads are checked: it needs O(T²) memory."""
    batch: int = 1
    """B."""
    heads: int = 12
    """H."""
    head_size: int = 64
    """D."""
    model_tokens: int = 1024
    """T of the training step."""
    layers: int = 12
    """Layers of the model; its width is H·D."""
    vocabulary: int = 50257
    """Vocabulary of the model."""
    text_window: int = 32
    """W of the long texts, which are 20 of it: small, so that they are decoded soon, and what grows with the text
    stands out."""
    text_layers: int = 2
    """Layers of the model that decodes them."""
    large_batch: int = 16
    """B of the decoding case with several sequences."""
    demo: tuple[int, int, int, int] = (16, 4, 256, 32)
    """B, H, T = W and D of `make demo`'s model, whose context is short."""
    demo_layers: int = 4
    """Its layers."""
    demo_vocabulary: int = 2048
    """Its vocabulary."""
    pretrained: str | None = "SmolLM2-135M"
    """Folder under `data/models` of the pretrained model that is evaluated; None: a small one of random weights."""
    evaluated_tokens: int = 512
    """Tokens of the one window that it is evaluated on."""
    step_batches: tuple[int, ...] = (1, 16, 64)
    """B of the digital decoding step; 64 is what the published GPU figures were taken at."""
    swept_bytes: int = 256 * 2**20
    """Keys and values that pass between two steps on the same cache: several times what a processor's own cache
    holds."""
    backend: str = "blocked"
    """The subject: `hardware.backend`."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    dtype: str = "float32"
    """`float32` or `bfloat16`: inputs, weights and comparisons alike."""
    seconds: float = 3.0
    """Aim for the time of one point; never fewer than three repetitions."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return getattr(torch, self.dtype)

    def windows(self, tokens: int) -> tuple[int, ...]:
        """W to measure at this T."""
        return (self.window, *(self.other_windows if tokens == self.other_windows_tokens else ()))

    def hardware(
        self, window: int, *, backend: str, leakage: bool = True, converters: bool = True, noise: Noise | None = None
    ) -> Hardware:
        """The hardware of a case; `converters=False` is :func:`smooth`, `noise=None` is none."""
        hardware = getattr(presets, PRESET)()
        hardware.array.window = window
        hardware.array.rows = min(hardware.array.rows, window)
        hardware.backend = backend
        if not leakage:
            hardware.leakage.tau_s = None
        if noise is not None:
            hardware.noise = noise
        return hardware if converters else smooth(hardware)


def smooth(hardware: Hardware) -> Hardware:
    """`hardware` with the clips of its converters but without their levels, so that results are continuous."""
    changed = ("input_dac", "storage_dac", "score_adc", "probability_dac", "readout")
    return replace(hardware, **{name: replace(getattr(hardware, name), n_levels=None) for name in changed})


def default_settings() -> Settings:
    """The speed table's shapes on this machine's device; longer sequences where a GPU makes them affordable."""
    if torch.cuda.is_available():
        return Settings(
            device="cuda",
            backend="triton",
            dtype="bfloat16",
            tokens=(256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
        )
    return Settings()


def quick_settings() -> Settings:
    """Seconds instead of minutes: to see that everything runs. Its numbers mean nothing."""
    gpu = torch.cuda.is_available()
    return Settings(
        device="cuda" if gpu else "cpu",
        backend="triton" if gpu else "blocked",
        tokens=(64, 192),
        window=128,
        other_windows=(64,),
        other_windows_tokens=192,
        heads=2,
        head_size=32,
        model_tokens=64,
        layers=2,
        vocabulary=256,
        text_window=8,
        large_batch=3,
        demo=(3, 2, 64, 16),
        pretrained=None,
        evaluated_tokens=64,
        step_batches=(1, 3),
        swept_bytes=2**18,
        seconds=0.1,
    )
