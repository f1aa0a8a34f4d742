"""The model of a study: one on arrays as it is; a digital one is put on arrays first, calibrated, and kept beside the
study's results."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import aimc

from .errors import RunError
from .files import read_object, whole_folder, write_json
from .models import converted, is_analog, rotation_for
from .pretrained import load_digital
from .real_rows import ROWS, fitting
from .tables import Say
from .tokens import prepare
from .windows import placed

if TYPE_CHECKING:
    from .study_schema import StudyConfig

ROW = "6_bit"
"""Of `train.real`: the machine that a model bears without training."""
FOLDER = "on_arrays"
TOKENS, CONTEXT = 1024, 512
"""Of the training text, in rows, that ranges are calibrated on."""


def model_of(settings: StudyConfig) -> Path:
    """Folder of the model that is studied: the checkpoint, or its copy on arrays.

    Raises:
        RunError: no such checkpoint.
    """
    return Path(settings.checkpoint) if is_analog(settings.checkpoint) else settings.folder / FOLDER


def put_on_arrays(settings: StudyConfig, say: Say) -> None:
    """Make the copy, unless the checkpoint is on arrays itself or an earlier study has made it.

    Raises:
        RunError: no such checkpoint, attention that cannot go onto arrays, or too short a text.
    """
    source = settings.checkpoint
    if is_analog(source):
        return
    folder, mark = settings.folder / FOLDER, settings.folder / f"{FOLDER}.json"
    facts = {"source": source, "key": _key(settings)}
    if read_object(mark) == facts and _is_there(folder):
        say(f"{source} is digital; its copy on arrays, from an earlier study, is in {folder}")
        return
    digital = load_digital(source, "checkpoint").eval()
    measurement = placed(settings.measure, settings.data, digital.config)
    context = min(CONTEXT, measurement.context or CONTEXT)
    data = prepare(settings.data, source, context)  # refuses less text than one row
    tokens = data.tensor("train", TOKENS)
    say(
        f"{source} is digital; it goes onto arrays as train.real's row {ROW} ({ROWS[ROW].title}), calibrated on"
        f" {len(tokens):,} tokens"
    )
    model = copy.deepcopy(digital)
    converted(model, fitting(ROWS[ROW].machine(settings.hardware), measurement, rotation_for(digital)))
    batch = tokens[: len(tokens) // context * context].view(-1, context)
    aimc.calibrate_ranges(model, digital, [batch], progress=True)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        data.tokenizer.save_pretrained(partial)
    write_json(mark, facts)


def _is_there(folder: Path) -> bool:
    """Whether a copy can be read."""
    try:
        return is_analog(str(folder))
    except RunError:
        return False


def _key(settings: StudyConfig) -> str:
    """What a copy depends on: the files of the model, hardware, windows and text."""
    place = Path(settings.checkpoint)
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    facts = (stamps, settings.hardware, settings.measure.context, settings.data)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
