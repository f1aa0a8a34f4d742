"""Property: whatever stands at a field, a command is taken or ends with one line that names it. Some words of each kind
here; a thousand with `make faults`."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, settings

from tests.train.malformed import SCHEMAS, Word, any_words, is_good, places, said_of, wrong_words

FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a word is short enough to be read without shrinking
    suppress_health_check=[HealthCheck.too_slow],
)


@FEW
@given(wrong_words())
def test_a_wrong_value_is_one_line_that_names_the_field(word: Word) -> None:
    said = said_of(word)
    assert is_good(word, said), f"{word}: {said}"


@FEW
@given(any_words())
def test_any_value_is_taken_or_is_one_line(word: Word) -> None:
    said = said_of(word)
    assert is_good(word, said, may_be_taken=True), f"{word}: {said}"


@settings(FEW, max_examples=2)
@given(wrong_words(through_hydra=True))
def test_so_it_is_where_hydra_would_choose_a_file(word: Word) -> None:
    said = said_of(word)
    assert is_good(word, said), f"{word}: {said}"


def test_every_schema_has_its_fields_tried() -> None:
    assert {place.config for place in places()} == set(SCHEMAS) and len(places()) > 700


def test_the_judge_tells_good_from_bad() -> None:
    word = Word("run", "seed", "seed=-1")
    assert is_good(word, said_of(word))
    assert is_good(word, None, may_be_taken=True) and not is_good(word, None)
    for said in (
        "error: model.n_layer=0\n",
        "error: seed=-1\nand more",
        "traceback: ValueError: seed",
        "error: seed\x1b[2J",
    ):
        assert not is_good(word, said)
