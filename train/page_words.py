"""How a page calls the fields that a grid or a circuit changes."""

from __future__ import annotations

from aimc.evaluate.study.effects import NOISES

WORDS = {
    "hardware.input_dac.n_levels": "input levels",
    "hardware.storage_dac.n_levels": "storage levels",
    "hardware.readout.n_levels": "readout levels",
    "cell.capacitance_f": "capacitance",
    "cell.read_v": "read voltage",
    "hardware.array.rows": "rows of a sub-tile",
    "hardware.array.window": "window",
    "hardware.leakage.tau_s": "retention, s",
}
"""Paths that are met often."""


def short_path(path: str) -> str:
    """`hardware.input_dac.n_levels` is `input levels`."""
    if path in WORDS:
        return WORDS[path]
    if (noise := path.removeprefix("nonideality.")) in NOISES:
        return NOISES[noise][0]
    return path.removeprefix("hardware.").replace(".n_levels", " levels")
