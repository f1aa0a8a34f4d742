"""Causal convolution with a kernel as long as the text, by fast Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_convolution(signal: Tensor, kernel: Tensor) -> Tensor:
    """y_t = Σ_{j ≤ t} kernel_j · signal_{t−j}, a channel at a time, in float32.

    Padded with zeros to a power of two that no end wraps around in: T·log T operations instead of T².

    Args:
        signal: `[B, C, T]`, real, of any precision.
        kernel: `[C, L]` or `[B, C, L]`; taps beyond T are left out.

    Returns:
        `[B, C, T]` in float32.
    """
    n_tokens = signal.shape[-1]
    kernel = kernel[..., :n_tokens].float()
    size = 1 << (n_tokens + kernel.shape[-1] - 2).bit_length()
    spectrum = torch.fft.rfft(signal.float(), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :n_tokens]
