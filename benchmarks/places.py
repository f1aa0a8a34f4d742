"""The options of commands that train many models side by side: how many, how long, and where."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aimc.hardware import BACKENDS

DEVICES = ("cpu", "cuda", "auto")


def parse(parser: argparse.ArgumentParser, what: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command line, `--jobs`, `--minutes`, `--device` and `--backend` among them; ends the command where
    they ask for a GPU that there is not.

    Args:
        parser: of the command's own options.
        what: is trained, in the plural.
        arguments: None: those that the process was given.
    """
    parser.add_argument("--jobs", type=int, default=2, help=f"{what} at once, one thread each")
    parser.add_argument("--minutes", type=float, help=f"after which no further {what} are begun")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="auto: a GPU if there is one")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="of attention's cells")
    words = parser.parse_args(arguments)
    if words.device == "cuda":
        import torch  # takes seconds, which --help need not wait for

        if not torch.cuda.is_available():
            parser.error("--device cuda: PyTorch finds no GPU here, so none can compute; give --device cpu or auto")
    return words


def device_of_pipeline(device: str) -> str:
    """A device of :data:`DEVICES` as a run's config has it, which takes the GPU that there is."""
    return f"trainer.device={'cpu' if device == 'cpu' else 'auto'}"
