"""A page of one or several studies: one file that needs nothing else, and its charts as PNG and CSV beside it."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aimc
from aimc.evaluate.study.parts import PARTS
from aimc.plot.charts import Chart, figure_of, table_of

from . import page_charts
from .errors import RunError
from .files import write_text
from .page_answers import headlines
from .page_shapes import Section, Table
from .page_style import CSS, SCRIPT
from .page_views import samples_section, sections_of, stages_section
from .study_run import FORMAT, RESULTS
from .study_tables import percent
from .tables import Say, warned

if TYPE_CHECKING:
    from .study_schema import PageConfig

PAGE, CHARTS = "study.html", "charts"
Study = dict[str, Any]


def studies_of(settings: PageConfig) -> dict[str, Study]:
    """Results by name: of the folder itself, or of the folders in it.

    Raises:
        RunError: there are none, or they cannot be read.
    """
    folder = Path(settings.study)
    files = [folder / RESULTS] if (folder / RESULTS).exists() else sorted(folder.glob(f"*/{RESULTS}"))
    if not files:
        raise RunError(
            f"study={folder}: there are no results ({RESULTS}) to report, in it or its folders; measure first:"
            f" python -m train.study checkpoint=… output_dir={folder}"
        )
    return {file.parent.name: _read(file) for file in files}


def _read(file: Path) -> Study:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version = found["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"study={file.parent}: {file.name} cannot be read ({type(error).__name__}), so nothing can be reported; run"
            " the study again, its measured points are read from its cache"
        ) from error
    if version != FORMAT:
        raise RunError(
            f"study={file.parent}: {file.name} is of format {version} and this is {FORMAT}; run the study again, its"
            " measured points are read from its cache"
        )
    return found


def missing_parts(study: Study) -> list[str]:
    """Parts that were asked for and are not there: an interruption left them out."""
    return [part for part in PARTS if part in study["parts"] and part not in study["results"]]


def write(settings: PageConfig, studies: dict[str, Study], say: Say) -> Path:
    """The page, and PNG and CSV of each chart."""
    for name, study in studies.items():
        if missing := missing_parts(study):
            say(f"{warned(name)}: {', '.join(missing)} not measured yet; the study's own command goes on with it")
    first = next(iter(studies.values()))
    title = settings.title or f"Study of {first['checkpoint']}"
    body = [_comparison(studies)] if len(studies) > 1 else []
    for name, study in studies.items():
        sections = list(_sections(settings, study))
        prefix = "" if len(studies) == 1 else f"{name}-"
        stills = {chart.name: _beside(chart, settings.folder / CHARTS, prefix) for chart in _charts(sections)}
        body.append(_study(study, sections, stills, prefix, name if prefix else None))
    path = settings.folder / PAGE
    write_text(path, _document(title, first, "\n".join(body)))
    if not page_charts.is_installed():
        say("plotly is not installed, so the page has still pictures; pip install 'aimc[study]' for plots to read off")
    return path


def _sections(settings: PageConfig, study: Study) -> Iterator[Section]:
    rows = _stages(settings, study)
    if rows:
        yield stages_section(rows)
    yield from sections_of(study)
    if "samples" in study:
        yield samples_section(study["samples"])


def _stages(settings: PageConfig, study: Study) -> list[dict[str, Any]]:
    """Perplexities of the run that the checkpoint comes from, where it has a report."""
    run = Path(settings.run) if settings.run else Path(study["checkpoint"]).parent
    file = run / "report" / "results.json"
    if not file.exists():
        if settings.run:
            raise RunError(
                f"run={run}: there is no {file}, so no stages can be shown; leave run out, or run the pipeline"
            )
        return []
    return [row for row in json.loads(file.read_text(encoding="utf-8"))["rows"] if row["group"] == "stage"]


def _charts(sections: Sequence[Section]) -> Iterator[Chart]:
    for section in sections:
        yield from (item for item in section.items if isinstance(item, Chart) and _has_numbers(item))


def _has_numbers(chart: Chart) -> bool:
    return bool(chart.z or any(series.y for series in chart.series))


def _beside(chart: Chart, folder: Path, prefix: str) -> Path:
    """PNG and CSV of a chart; the PNG."""
    picture = folder / f"{prefix}{chart.name}.png"
    aimc.plot.save(figure_of(chart), picture)
    header, rows = table_of(chart)
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    write_text(picture.with_suffix(".csv"), text.getvalue())
    return picture


def _comparison(studies: dict[str, Study]) -> str:
    rows = []
    for name, study in studies.items():
        found = study["results"].get("sensitivity", {})
        first = found["rows"][0]["label"] if found.get("rows") else "–"
        rows.append([name, percent(found.get("rise")), first])
    return f"<h2>Studies</h2>{_table(Table(['study', 'all effects', 'costs most'], rows))}"


def _study(study: Study, sections: Sequence[Section], stills: dict[str, Path], prefix: str, name: str | None) -> str:
    parts = [f"<h2>{html.escape(name)}</h2>"] if name else []
    if told := headlines(study):
        parts.append(f'<div class="answers"><ul>{"".join(f"<li>{html.escape(line)}</li>" for line in told)}</ul></div>')
    if missing := missing_parts(study):
        parts.append(f'<p class="note">Not measured yet: {", ".join(missing)}. The study was interrupted.</p>')
    links = [(f"{prefix}{i}", section.title) for i, section in enumerate(sections)]
    anchors = [f'<a href="#{at}">{html.escape(words)}</a>' for at, words in links]
    parts.append(f"<nav>{''.join(anchors)}</nav>")
    for (at, _), section in zip(links, sections, strict=True):
        parts.append(f'<h2 id="{at}">{html.escape(section.title)}</h2><p>{html.escape(section.words)}</p>')
        if section.code:
            parts.append(f"<pre>{html.escape(chr(10).join(section.code))}</pre>")
        for item in section.items:
            if isinstance(item, Table):
                parts.append(_table(item))
            elif _has_numbers(item):
                parts.append(_chart(item, stills[item.name]))
    return "\n".join([*parts, _about(study)])


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(word)}</th>" for word in table.header)
    rows = []
    for i, row in enumerate(table.rows):
        look = ' class="marked"' if i in table.marked else ""
        cells = "".join(f"<td>{html.escape(word if table.prose else _wrapped(word))}</td>" for word in row)
        rows.append(f"<tr{look}>{cells}</tr>")
    look = ' class="prose"' if table.prose else ""
    return f'<div class="wide"><table{look}><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _wrapped(word: str) -> str:
    """Lines break between a value and its interval, not inside either, and not between a number and its unit."""
    word = re.sub(r"(?<=\d) (?=[^\s(…]{1,2}(\s|$))", "\N{NO-BREAK SPACE}", word)
    return re.sub(r"\(.*\)$", lambda interval: interval[0].replace(" ", "\N{NO-BREAK SPACE}"), word)


def _chart(chart: Chart, picture: Path) -> str:
    """Drawn by plotly where a script runs; a still picture on paper and where none does."""
    still = base64.b64encode(picture.read_bytes()).decode()
    title = html.escape(chart.title)
    drawn = ""
    if page_charts.is_installed():
        drawn = f'<div class="chart"><script type="application/json">{page_charts.figure_json(chart)}</script></div>'
    return (
        f'<figure><h3>{title}</h3>{drawn}<img class="still" alt="{title}" src="data:image/png;base64,{still}"></figure>'
    )


def _about(study: Study) -> str:
    """Exact configs, versions and command, folded up."""
    failures = "".join(f"<li>{html.escape(f['label'])}: {html.escape(f['reason'])}</li>" for f in study["failures"])
    versions = ", ".join(f"{name} {version}" for name, version in study["versions"].items())
    scored = study["measurement"]["scored_tokens"]
    facts = (
        f"{study['measured']:,} passes measured and {study['read']:,} read from earlier studies in"
        f" {study['seconds']:,.0f} s; {study['measurement']['chips']} chips, {scored:,} scored tokens; intervals of"
        f" {100 * study['confidence']:g} %; {study['date']}; {study['machine']}. {versions}."
    )
    config, hardware = (
        html.escape(json.dumps(study[name], indent=2, ensure_ascii=False)) for name in ("config", "hardware")
    )
    return (
        f"<h2>How it was measured</h2><p>{html.escape(facts)}</p><pre>{html.escape(study['command'])}</pre>"
        + (f"<h3>{len(study['failures'])} measurements failed</h3><ul>{failures}</ul>" if failures else "")
        + f"<details><summary>Config of the study</summary><pre>{config}</pre></details>"
        f"<details><summary>Hardware of the checkpoint</summary><pre>{hardware}</pre></details>"
    )


def _document(title: str, study: Study, body: str) -> str:
    library = script = ""
    if page_charts.is_installed():
        library = f"<script>{page_charts.library()}</script>"
        looks = SCRIPT.replace("LIGHT", page_charts.theme(False)).replace("DARK", page_charts.theme(True))
        script = f"<script>{looks}</script>"
    words = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en" class="no-script"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{words}</title><style>{CSS}</style>{library}</head>\n<body><main><h1>{words}</h1>"
        f'<p class="faint">{html.escape(study["checkpoint"])}, {html.escape(study["date"])}</p>\n'
        f"{body}\n</main>{script}</body></html>\n"
    )
