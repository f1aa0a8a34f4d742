"""What a conversion replaced."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class ConversionReport:
    """What a conversion replaced."""

    layers: list[str] = field(default_factory=list)
    """Full names of the attention layers that now run on arrays."""
    skipped: list[str] = field(default_factory=list)
    """Full names of those that stay digital."""
    n_heads: int = 0
    """Query heads a layer."""
    n_kv_heads: int = 0
    """Key and value heads a layer; each has a key and a value array, shared by its group of query heads."""
    head_size: int = 0
    """D, features a token writes to each array."""
    n_scalers: int = 0
    """Trainable numbers added: gain and offset a head, of four scalers a layer, and with a softmax one gain of its
    scores."""
    static: dict[str, str] = field(default_factory=dict)
    """Full names of the layers that now are on static tiles, and what they are on."""
    digital: list[str] = field(default_factory=list)
    """Full names of a hybrid's state spaces, convolutions and linear attention, which stay digital; with static tiles,
    of all other modules with weights of their own."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """With static tiles: full names of layers that aihwkit's own conversion made before, and their kind; they stay."""
    notes: list[str] = field(default_factory=list)
    """What the hardware does differently from the digital model."""

    def __str__(self) -> str:
        lines = []
        if self.layers:
            lines.append(
                f"{len(self.layers)} attention layers on gain-cell arrays: {self.n_heads} heads on the arrays of"
                f" {self.n_kv_heads} K/V heads × {self.head_size} features each, {self.n_scalers} scaler parameters"
            )
        lines += [f"  {name}" for name in self.layers] + [f"  {name}: stays digital" for name in self.skipped]
        if self.static:
            lines.append(f"{len(self.static)} layers on static tiles")
            lines += [f"  {name}: {what}" for name, what in self.static.items()]
        if self.elsewhere:
            lines.append(f"{len(self.elsewhere)} layers are aihwkit's own, and stay as they are")
            lines += [f"  {name}: {kind}" for name, kind in self.elsewhere.items()]
        if self.digital:
            lines.append(f"{len(self.digital)} modules with weights stay digital")
            lines += [f"  {name}" for name in self.digital]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])
