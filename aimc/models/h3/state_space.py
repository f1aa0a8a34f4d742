"""The two state spaces of an H3 layer (arXiv 2212.14052, sections 3.1 and 3.2), each with its skip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.models.recurrent.convolution import causal_convolution
from aimc.models.recurrent.kept import kept
from aimc.models.recurrent.modal import bilinear, modal_filter
from aimc.models.recurrent.precise import PreciseParameters


class ShiftStateSpace(PreciseParameters):
    """Remembers the last N inputs of each channel: x_t = S·x_{t−1} + B·u_t with the shift S, y_t = C·x_t + D·u_t.

    That is a convolution with N taps, K_j = Σ_{n ≥ j} C_n·B_{n−j}; what it remembers are its last inputs.

    Args:
        channels: C.
        n_states: N.
    """

    has_weight_decay = False

    def __init__(self, channels: int, n_states: int):
        super().__init__()
        self.n_states = n_states
        self.B = nn.Parameter(torch.empty(channels, n_states))
        self.C = nn.Parameter(torch.empty(1, channels, n_states))
        self.D = nn.Parameter(torch.empty(channels))

    @kept
    def kernel(self) -> Tensor:
        """K, `[C, N]` in float32."""
        size = 2 * self.n_states
        spectrum = torch.fft.rfft(self.B.float(), n=size).conj() * torch.fft.rfft(self.C[0].float(), n=size)
        return torch.fft.irfft(spectrum, n=size)[..., : self.n_states]

    def forward(self, inputs: Tensor, n_new: int) -> Tensor:
        """The outputs of the last `n_new` inputs.

        Args:
            inputs: `[B, C, T]`, those before the new ones included, as far as they are remembered.

        Returns:
            `[B, C, n_new]` in float32.
        """
        if n_new == 1:
            window = F.pad(inputs[..., -self.n_states :], (max(0, self.n_states - inputs.shape[-1]), 0))
            output = (window * self.kernel().flip(-1)).sum(-1, keepdim=True)
        else:
            output = causal_convolution(inputs, self.kernel())[..., -n_new:]
        return output + self.D.float()[:, None] * inputs[..., -n_new:]


class DiagonalStateSpace(PreciseParameters):
    """Remembers all inputs of each channel, ever more faintly: x' = A·x + B·u, discretised bilinearly with a step of
    its own per channel, y = 2·Re(C·x) + D·u. A is diagonal, with real parts −exp(inv_A_real).

    Args:
        channels: C.
        n_states: N, twice the complex modes.
    """

    has_weight_decay = False

    def __init__(self, channels: int, n_states: int):
        super().__init__()
        modes = n_states // 2
        self.log_dt = nn.Parameter(torch.empty(channels))
        self.inv_A_real = nn.Parameter(torch.empty(channels, modes))
        self.A_imag = nn.Parameter(torch.empty(channels, modes))
        self.B = nn.Parameter(torch.empty(channels, modes, 2))
        self.C = nn.Parameter(torch.empty(1, channels, modes, 2))
        self.D = nn.Parameter(torch.empty(channels))

    @kept
    def modes(self) -> tuple[Tensor, Tensor]:
        """Poles and residues of the modal form, `[C, N/2]` each, complex128; the state there is x without its B."""
        a = torch.complex(-self.inv_A_real.double().exp(), self.A_imag.double())
        poles, gain = bilinear(self.log_dt.double().exp(), a)
        b, c = torch.view_as_complex(self.B.double()), torch.view_as_complex(self.C[0].double())
        return poles, 2 * c * b * gain

    def forward(self, inputs: Tensor, state: Tensor | None, *, keep_state: bool) -> tuple[Tensor, Tensor | None]:
        """New inputs `[B, C, T]` that follow `state`; outputs `[B, C, T]` in float32, and the state after them; see
        :func:`aimc.models.recurrent.modal.modal_filter`."""
        output, state = modal_filter(inputs, *self.modes(), state, keep_state=keep_state)
        return output + self.D.float()[:, None] * inputs, state
