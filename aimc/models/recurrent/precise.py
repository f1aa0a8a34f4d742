"""Parameters that half precision would spoil."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from aimc.nn.scaler import kept_precise


class PreciseParameters(nn.Module):
    """A module whose own parameters stay in float32 when the model is cast to half precision, all or those of
    :attr:`PRECISE`: poles near the unit circle would be rounded onto it, or past it."""

    PRECISE: tuple[str, ...] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        own = dict(self.named_parameters(recurse=False))
        precise = [x for name, x in own.items() if self.PRECISE is None or name in self.PRECISE]
        held = {id(x) for x in precise} | {id(x.grad) for x in precise if x.grad is not None}
        careful = kept_precise(fn)
        return super()._apply(lambda x: careful(x) if id(x) in held else fn(x), recurse)
