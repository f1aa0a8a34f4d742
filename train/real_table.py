"""The table of a pretrained model on arrays: one row calibrated, measured and written after the other."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import aimc
from aimc.evaluate.agreement import agreement
from aimc.evaluate.measurement import Measurement
from aimc.evaluate.perplexity import perplexity
from aimc.evaluate.selection import selection
from aimc.hardware import Hardware

from .corpus import embedded, read_text
from .errors import RunError
from .files import read_object, whole_folder, write_json, write_text
from .models import converted, digest_of_source, rotation_for
from .pretrained import load_digital, vocabulary_of
from .real_rows import ROWS, Row, fitting
from .tables import Say

if TYPE_CHECKING:
    from .schema import RealConfig


@dataclass(slots=True, kw_only=True)
class Measured:
    """One finished row."""

    title: str
    group: str
    perplexity: float
    ratio: float
    """Over the digital model's on the same tokens."""
    stderr: float | None
    """Of the ratio: over the text, or over the chips where there are several."""
    kl: float | None = None
    """Divergence from the digital model, nat a token."""
    top1: float | None = None
    """Share of tokens at which both find the same next token the likeliest."""
    chips: int = 1
    calibration_s: float = 0.0
    evaluation_s: float = 0.0
    output_error: float | None = None
    """Mean squared relative error of the attention output on the calibration text."""
    at_most: float | None = None
    aim: float | None = None
    kept_share: float | None = None
    """Of the tokens, where the arrays select; on the first window of the text, mean over layers."""
    recalled_mass: float | None = None
    """Share of exact softmax attention that the selected tokens have; likewise."""
    machine: str = ""
    """Fingerprint of what was measured: another is measured again."""


def require_rows(names: list[str]) -> None:
    """Raise a RunError for a row that does not exist."""
    if unknown := [name for name in names if name not in ROWS]:
        raise RunError(f"rows={names}: no row {', '.join(unknown)}; the rows are {', '.join(ROWS)}")


def measure(settings: RealConfig, say: Say) -> None:
    """Every row that is not there yet."""
    assert settings.model.source is not None  # the config has checked
    model = load_digital(settings.model.source).eval()
    tokenizer = vocabulary_of(settings.model.source).tokenizer
    text, calibration = texts(settings, tokenizer)
    file, key = settings.folder / "results.json", _key(settings, text, calibration)
    done = {} if settings.restart else _earlier(file, key)
    _put_aside(file, key)
    names = settings.rows or list(ROWS)
    digital = done.get("digital") or _digital(model, text, settings.measure)
    rows: dict[str, Measured] = {"digital": digital}
    say(f"digital: perplexity {digital.perplexity:.2f} in {digital.evaluation_s:.0f} s")
    for name in names:
        row = rows[name] = _earlier_row(name, done, settings) or _row(name, model, text, calibration, settings, digital)
        say(
            f"{row.title}: {row.perplexity:.2f}, {row.ratio:.4f} x digital"
            f" (calibration {row.calibration_s:.0f} s, evaluation {row.evaluation_s:.0f} s)" + _selected(row)
        )
        write_json(file, {"key": key, "rows": {name: asdict(row) for name, row in (done | rows).items()}})
        write_text(settings.folder / "table.md", markdown(rows))
    say(table(rows))


def texts(settings: RealConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """What is measured, int64 `[N]`, and what is calibrated on, `[B, T]`.

    Raises:
        RunError: a file that cannot be read, or too short a text.
    """
    measure = settings.measure
    context = measure.context or 1024
    of_row = settings.calibration_context
    wanted = max(settings.calibration_tokens // of_row, 1) * of_row
    if settings.text is None or settings.calibration_text is None:
        parts: dict[str, list[str]] = {"valid": [], "test": []}
        for split, document in embedded():
            if split in parts:
                parts[split].append(document)
        text, other = ("\n\n".join(parts[split]) for split in ("test", "valid"))
    else:
        text = read_text(Path(settings.text), "text")
        other = read_text(Path(settings.calibration_text), "calibration_text")
    tokens, calibration = _tokens(text, tokenizer, measure.tokens), _tokens(other, tokenizer, wanted)
    for name, found, least, setting in (
        ("text", tokens, context, "measure.context"),
        ("calibration_text", calibration, of_row, "calibration_context"),
    ):
        if len(found) < least:
            raise RunError(
                f"{name}: {len(found)} tokens, fewer than one window of {least} ({setting}); give more text, or a"
                " shorter window"
            )
    return tokens, calibration[: len(calibration) // of_row * of_row].view(-1, of_row)


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase, n: int | None) -> Tensor:
    if n is not None:
        text = text[: 40 * n]  # no tokenizer makes longer tokens of prose, and the rest need not be read
    return tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0][:n]


def _digital(model: PreTrainedModel, text: Tensor, measurement: Measurement) -> Measured:
    start = time.perf_counter()
    value = float(perplexity(model, text, replace(measurement, chips=1)))
    return Measured(
        title="digital", group="", perplexity=value, ratio=1.0, stderr=0.0, evaluation_s=time.perf_counter() - start
    )


def _row(
    name: str, digital: PreTrainedModel, text: Tensor, calibration: Tensor, settings: RealConfig, base: Measured
) -> Measured:
    row, model, hardware = ROWS[name], copy.deepcopy(digital), _hardware(name, digital, settings)
    converted(model, hardware)
    start = time.perf_counter()
    report = aimc.calibrate_ranges(
        model, digital, [calibration], method=row.method, nonideality=row.noise, progress=True
    )
    calibrated = time.perf_counter()
    if settings.save:
        with whole_folder(settings.folder / name) as partial:
            model.save_pretrained(partial)
            vocabulary_of(settings.model.source).tokenizer.save_pretrained(partial)  # type: ignore[arg-type]
    facts: dict[str, Any] = {"title": row.title, "group": row.group, "at_most": row.at_most, "aim": row.aim}
    facts |= {"calibration_s": calibrated - start, "machine": _fingerprint(row, settings.hardware)}
    facts |= {"output_error": report.error if row.method == "output_error" else None}
    if row.noise is not None:
        part = text[: settings.noise_tokens]
        own = perplexity(digital, part, replace(settings.measure, chips=1)).mean
        start = time.perf_counter()
        noisy = perplexity(model, part, settings.measure, nonideality=row.noise)
        chips = len(noisy.per_chip)
        error = noisy.std / chips**0.5 if chips > 1 else noisy.stderr  # of one chip there is that over the text alone
        facts |= {"ratio": noisy.mean / own, "stderr": None if error is None else error / own, "chips": chips}
        return Measured(**facts, perplexity=noisy.mean, evaluation_s=time.perf_counter() - start)
    start = time.perf_counter()
    both = agreement(model, digital, text, replace(settings.measure, chips=1))
    seconds = time.perf_counter() - start - base.evaluation_s  # the digital model reads along
    facts |= {"kl": both.kl.mean, "top1": both.top1.mean, "ratio": both.ratio.mean, "stderr": both.ratio.stderr}
    if hardware.activation == "pruned_softmax":
        layers = selection(model, digital, text[None, : settings.measure.context or 1024])
        for fact in ("kept_share", "recalled_mass"):
            facts[fact] = sum(getattr(layer, fact) for layer in layers) / len(layers)
    return Measured(**facts, perplexity=both.perplexity.mean, evaluation_s=seconds)


def _selected(row: Measured) -> str:
    if row.kept_share is None or row.recalled_mass is None:
        return ""
    return f"; {row.kept_share:.1%} of the tokens selected, with {row.recalled_mass:.1%} of the attention"


def _hardware(name: str, digital: PreTrainedModel, settings: RealConfig) -> Hardware:
    return fitting(ROWS[name].machine(settings.hardware), settings.measure, rotation_for(digital))


def _key(settings: RealConfig, *texts: Tensor) -> str:
    """What earlier results must share: the settings, and the tokens themselves."""
    facts = {k: v for k, v in asdict(settings).items() if k not in ("rows", "restart", "save", "output_dir")}
    if (source := settings.model.source) is not None and Path(source).exists():
        facts["weights"] = digest_of_source(Path(source))
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for text in texts:
        digest.update(text.numpy().tobytes())
    return digest.hexdigest()[:16]


def _fingerprint(row: Row, hardware: Hardware) -> str:
    return hashlib.sha256(repr((row.machine(hardware), row.method, row.noise)).encode()).hexdigest()[:16]


def _earlier_row(name: str, done: dict[str, Measured], settings: RealConfig) -> Measured | None:
    """What was measured already, of the machine that the row means today."""
    row = done.get(name)
    if row is None or row.machine != _fingerprint(ROWS[name], settings.hardware):
        return None
    saved = settings.folder / name / "config.json"
    return row if saved.exists() or not settings.save else None


def _earlier(file: Path, key: str) -> dict[str, Measured]:
    """Rows that an earlier run with the same settings has written; damaged files have none."""
    for place in (file, _aside(file, key)):
        if (found := read_object(place)) is not None and found.get("key") == key:
            try:
                return {name: Measured(**row) for name, row in found["rows"].items()}
            except (KeyError, TypeError, AttributeError):
                continue
    return {}


def _put_aside(file: Path, key: str) -> None:
    """Rows of other settings, text or weights are kept, under the name of their key."""
    found = read_object(file)
    if found is not None and found.get("key") not in (None, key):
        file.rename(_aside(file, str(found["key"])))


def _aside(file: Path, key: str) -> Path:
    return file.with_name(f"{file.stem}_{key}{file.suffix}")


ON_TERMINAL = (0, 1, 2, 6, 7)
"""The columns that fit into 80 characters."""
COLUMNS = ("", "perplexity", "÷ digital", "±", "at most", "aim", "KL, nat", "top-1")


def _cells(row: Measured) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    title = row.title if row.chips == 1 else f"{row.title}, {row.chips} chips"
    spread = shown(row.stderr, ".4f") if row.group else ""
    bounds = (shown(row.at_most, "g"), shown(row.aim, "g"))
    return (
        title,
        f"{row.perplexity:.2f}",
        f"{row.ratio:.4f}",
        spread,
        *bounds,
        shown(row.kl, ".4f"),
        shown(row.top1, ".1%"),
    )


def table(rows: dict[str, Measured]) -> Table:
    """For the terminal."""
    shown = Table(title="A pretrained model on gain-cell arrays, not trained")
    for i in ON_TERMINAL:
        shown.add_column(COLUMNS[i], justify="right" if i else "left")
    group = ""
    for row in rows.values():
        if row.group != group:
            shown.add_section()
            group = row.group
        shown.add_row(*(_cells(row)[i] for i in ON_TERMINAL))
    return shown


def markdown(rows: dict[str, Measured]) -> str:
    """For a page."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows.values())]) + "\n"
