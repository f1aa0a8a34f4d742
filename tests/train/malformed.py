"""Settings that are wrong, drawn by hypothesis for any field of any schema, and what a command line says of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.global_hydra import GlobalHydra
from hypothesis import strategies as st

from tests.train.conftest import composed, with_fields
from train.characterise_config import CharacteriseConfig
from train.command import command_line, launch, run_command
from train.configs import checked
from train.effects import require_effect
from train.schema import EvaluationConfig, RealConfig, RunConfig, WholeChipConfig
from train.spellings import in_quotes, respelled
from train.study_schema import PageConfig, StudyConfig

SCHEMAS: dict[str, tuple[type, list[str]]] = {
    "run": (RunConfig, []),
    "evaluation": (EvaluationConfig, ["checkpoint=x"]),
    "real": (RealConfig, []),
    "whole_chip": (WholeChipConfig, ["checkpoint=x"]),
    "characterise": (CharacteriseConfig, []),
    "study": (StudyConfig, ["checkpoint=x"]),
    "page": (PageConfig, ["study=x"]),
}
"""By the name of the config, with what a command line cannot do without."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a command line."""

    config: str
    name: str
    """What it sets."""
    text: str
    through_hydra: bool = False
    """Whether Hydra must read it before it composes, for it may choose a file."""

    def __str__(self) -> str:
        return f"{self.config} {self.text}"


@dataclass(frozen=True, slots=True)
class Place:
    """A field of a schema."""

    config: str
    name: str
    kind: Any
    """Its type, without None."""


@cache
def places() -> list[Place]:
    """All fields, groups of fields among them."""
    return [place for config, (schema, _) in SCHEMAS.items() for place in _places(config, schema, "")]


def _places(config: str, schema: type, inside: str) -> Iterator[Place]:
    hints = get_type_hints(schema)
    for item in dataclasses.fields(schema):
        hint = hints[item.name]
        kind = next((part for part in get_args(hint) if part is not NoneType), hint) if _is_union(hint) else hint
        name = f"{inside}.{item.name}".lstrip(".")
        yield Place(config, name, kind)
        if dataclasses.is_dataclass(kind):
            yield from _places(config, kind, name)  # type: ignore[arg-type]


def _is_union(hint: Any) -> bool:
    return NoneType in get_args(hint)


WORDS = st.sampled_from(
    ["abc", "nan", "inf", "-inf", "1e400", "0x10", "1_0", "💥", "[]", "a b", "-", "${", "}", "\\", "'"]
)
TEXT = st.one_of(WORDS, st.text(st.characters(codec="utf-8", exclude_characters="$"), min_size=1, max_size=8))
NUMBERS = st.one_of(
    st.integers(-(10**40), 10**40).map(str),
    st.floats().map(repr),
    st.sampled_from(["0", "-1", "1e-300", "1e300", "-0.0", "1e3", "0.5", "nan", "inf"]),
)
NOWHERE = st.sampled_from(
    ["${nope}", "${nope.a}", "${oc.env:NOPE_NOT_SET}", "${hydra:nope}", "${a:b}", "${seed.x}", "???"]
)
LISTS = st.sampled_from(["[1]", "[a,b]", "[[1]]", "[{a:1}]", "[null]"])
DICTS = st.sampled_from(["{a:1}", "{a:{b:c}}", "{seed:1}", "{'':1}"])
CONTAINERS = LISTS | DICTS
NOT_A_NUMBER = st.one_of(
    CONTAINERS,
    NOWHERE,
    st.sampled_from(["nan", "inf", "-inf", "1e400", "true", "''"]),
    TEXT.filter(lambda text: not _is_number(text)).map(in_quotes),
)
TOO_LARGE = st.one_of(st.integers(10**13, 10**60).map(str), st.integers(-(10**60), -(10**13)).map(str))
SIGNED = ("v_min", "v_max", "inl", "coefficients", "positions")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in ("null", "none")
    return True


def wrong_values(kind: Any) -> st.SearchStrategy[str]:
    """Values, as they are typed, that no field of a type takes."""
    of_kind: dict[Any, st.SearchStrategy[str]] = {
        int: NOT_A_NUMBER | TOO_LARGE | st.integers(-1000, 1000).map(lambda n: f"{n + 0.5}"),
        float: NOT_A_NUMBER | TOO_LARGE,
        bool: CONTAINERS | NOWHERE | st.sampled_from(["2.5", "abc", "''", "nan"]),
        str: CONTAINERS | NOWHERE | st.sampled_from(["''", "'\x01'", "'a\tb'", "'\x7f'", "'\u200b'"]),
        Any: st.sampled_from(["abc", "3", "[1]", "{}", "true", "${nope}"]),
    }
    if dataclasses.is_dataclass(kind):
        return LISTS | NOWHERE | st.sampled_from(["3", "abc", "true", "1.5", "{a:1}", "{'':1}", "null", "nan"])
    if get_origin(kind) is list:
        element = get_args(kind)[0]
        inside = ["{a:1}", "[1]", "null"] + (["''"] if element is str else ["abc", "nan", "inf"])
        return NOWHERE | st.sampled_from(["3", "abc", "{a:1}", "true", *(f"[{x}]" for x in inside)])
    return of_kind[kind]


@st.composite
def wrong_words(draw: st.DrawFn, through_hydra: bool = False) -> Word:
    """A word with a value that its field does not take, or with a key that nobody knows.

    Args:
        through_hydra: of those at the top, which Hydra itself looks at.
    """
    place = draw(st.sampled_from([x for x in places() if not through_hydra or "." not in x.name]))
    sign = draw(st.sampled_from(["", "", "", "+", "++"]))
    if dataclasses.is_dataclass(place.kind) and draw(st.booleans()):
        key = draw(st.sampled_from(["stepz", "x1", "_target_", "n-layer", "_"]))
        return Word(place.config, key, f"{sign}{place.name}.{key}={draw(NUMBERS | TEXT.map(in_quotes))}", through_hydra)
    value = draw(wrong_values(place.kind))
    if through_hydra:
        return Word(place.config, place.name, f"{sign}{place.name}={value}", True)
    return Word(place.config, place.name, f"{place.name}={value}")


@st.composite
def any_words(draw: st.DrawFn) -> Word:
    """A word with any value, right or wrong, at any field, and with it any other sign of Hydra's."""
    place = draw(st.sampled_from(places()))
    value = draw(
        st.one_of(NUMBERS, TEXT.map(in_quotes), TEXT, CONTAINERS, NOWHERE, st.sampled_from(["null", "${seed}", ""]))
    )
    sign = draw(st.sampled_from(["", "", "", "", "+", "++", "~"]))
    return Word(place.config, place.name, f"{sign}{place.name}={value}")


def said_of(word: Word) -> str | None:
    """What the command line says of a word; None: nothing, it is taken."""
    said, stop = io.StringIO(), None
    with contextlib.redirect_stderr(said):
        try:
            (_through_hydra if word.through_hydra else _into_composed)(word)
        except SystemExit as exit_:
            stop = exit_
        except BaseException as error:
            return f"traceback: {type(error).__name__}: {error}"
    if stop is None:
        return None
    return f"{said.getvalue()}{stop.code if isinstance(stop.code, str) else ''}"


def is_good(word: Word, said: str | None, may_be_taken: bool = False) -> bool:
    """Whether that is one line that names the field."""
    if said is None:
        return may_be_taken
    line = said.strip("\n")
    return line.startswith("error: ") and line.isprintable() and word.name.rpartition(".")[2] in line


def _through_hydra(word: Word) -> None:
    """All of a command but its work."""
    GlobalHydra.instance().clear()
    with _typed(word):
        command_line(word.config, SCHEMAS[word.config][0], lambda settings: None)()


def _into_composed(word: Word) -> None:
    """What Hydra and the door do with a field's word, into what was composed once."""

    def work() -> None:
        words, _ = respelled([word.text], word.config)
        config = with_fields(composed(word.config, *SCHEMAS[word.config][1]), words)
        settings = checked(config, SCHEMAS[word.config][0])
        require_effect(settings, words)

    with _typed(word):
        launch(lambda: run_command(work))


@contextlib.contextmanager
def _typed(word: Word) -> Iterator[None]:
    argv = sys.argv
    sys.argv = ["train", *SCHEMAS[word.config][1], word.text]
    try:
        yield
    finally:
        sys.argv = argv
