"""The config of `python -m train.characterise`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aimc.hardware import Hardware

from .errors import RunError
from .fields import check, choice, number
from .plausible import require_plausible

MODELS = ("gpt2_tiny", "h3_tiny", "stripedhyena_tiny", "mamba_tiny", "gsa_tiny")
"""Of equal parameters."""
LENGTHS = tuple(2**n for n in range(8, 17))
"""256 … 65,536 tokens."""


@dataclass(slots=True, kw_only=True)
class CharacteriseConfig:
    """What is measured of which models, at which lengths."""

    models: list[str] = field(default_factory=lambda: [*MODELS])
    """Each a file of conf/model/, a name of `aimc.evaluate.characterise.subjects.TABLE`, a model type with fields of
    its config (`h3:hidden_size=128,num_hidden_layers=4`), or a folder or hub name. Weights are random unless there is a
    folder, or a hub name is given."""
    lengths: list[int] = field(default_factory=lambda: list(LENGTHS))
    """Tokens of the prompt; those for which a model would take longer than `point_s` are left out, and it is said."""
    hardware: Hardware = field(default_factory=Hardware)
    """Arrays of the estimates; their window grows with the length."""
    most_slots: int | None = number(None, least=1)
    """Slots that an array has at most, and then forgets the oldest token; null: as many as there are tokens."""
    device: str = choice("auto", ("auto", "cpu", "cuda"))
    """`auto`: a GPU where there is one."""
    dtype: str = choice("auto", ("auto", "float32", "bfloat16", "float16"))
    """Of weights and activations; `auto`: float32 on a CPU, bfloat16 on a GPU."""
    threads: int | None = number(None, least=1)
    """Threads of the CPU; null: PyTorch's choice."""
    batch: int = number(1, least=1)
    """Sequences at once."""
    new_tokens: int = number(8, least=1)
    """Tokens behind the first whose time is taken."""
    repetitions: int = number(3, least=1)
    """Runs of a point whose times are taken, at most."""
    point_s: float = number(8.0, above=0)
    """Second that one run of a point may take; what is forecast to take more is not run. Beside its runs a point is
    profiled and counted, which takes some three times as long."""
    memory_gb: float | None = number(None, above=0)
    """Gigabyte that a point may hold beyond the weights; null: 80 % of what is free."""
    max_operators: float = number(3e5, above=0)
    """Operators of a call that is profiled and counted; a scan in Python has some ten a token and layer."""
    output_dir: str = "checkpoints/characterisation"
    """Folder of table, CSV, JSON and figure."""
    seed: int = number(0, least=0)
    """Of random weights and prompts."""
    implausible: bool = False
    """True: physical quantities outside the ranges of `train/plausible.py` are meant."""

    def __post_init__(self) -> None:
        check(self)
        require_plausible(self)
        if not self.models:
            raise RunError("models=[]: nothing to measure; give at least one, for example models=[gpt2_tiny]")
        if not self.lengths or min(self.lengths) < 8:
            raise RunError(f"lengths={self.lengths}: prompts have at least 8 tokens; give numbers such as [256,1024]")

    @property
    def folder(self) -> Path:
        """What one job writes into."""
        return Path(self.output_dir)
