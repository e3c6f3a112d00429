"""Words of every script, and whole words."""

from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.scores.words import TOKEN, holds, normalised, words, words_by_text

PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
"""A word with a zero-width non-joiner in it."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red t-shirt, the man's!", {"red", "t-shirt", "the", "man's"}),
        ("café Über naïve", {"café", "über", "naïve"}),
        ("नमस्ते दुनिया", {"नमस्ते", "दुनिया"}),  # vowel signs and viramas
        ("שָׁלוֹם עולם", {"שָׁלוֹם", "עולם"}),  # points
        (PERSIAN, {PERSIAN}),
        ("тёмный кот", {"тёмный", "кот"}),
        ("빨간 자동차", {"빨간", "자동차"}),
        ("தமிழ் மொழி", {"தமிழ்", "மொழி"}),
        ("红猫", {"红", "猫", "红猫"}),
        ("iPhone手機 5x", {"iphone", "手", "機", "手機", "5x"}),
        ("ラーメン", {"ラー", "ーメ", "メン"}),
        ("แมว", {"แม", "มว"}),
        ("ที่นี่", {"ที่นี่"}),  # two characters, each with its marks
        ("x , _ -", set()),
        ("", set()),
    ],
)
def test_words(text: str, expected: set[str]) -> None:
    expected = {unicodedata.normalize("NFC", word) for word in expected}
    assert words(text) == expected
    assert words(unicodedata.normalize("NFD", text)) == expected


NEARLY_ASCII = st.text("aB1_'- ,\n\tz\x00\x7f\u212a\u00fc", max_size=12)


@given(st.lists(st.one_of(NEARLY_ASCII, st.text(st.characters(codec="utf-8")))), st.booleans())
def test_many_texts_at_once(texts: list[str], cut: bool) -> None:
    array = pa.array(["left out", *texts], pa.string())[1:] if cut else pa.array(texts, pa.string())
    names, rows, numbers = words_by_text(array)
    found: list[set[str]] = [set() for _ in texts]
    for row, number in zip(rows, numbers, strict=True):
        found[row].add(names[number])
    assert found == [words(text) for text in texts]
    assert set(names) == set().union(*found)


@given(st.text(st.characters(categories=("L", "M", "N")), min_size=1, max_size=12))
def test_marks_never_stand_alone(text: str) -> None:
    for word in words(text):
        assert not unicodedata.category(word[0]).startswith("M")


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("a man walks", "a man", True),
        ("a mansion", "a man", False),
        ("panda man", "a man", False),
        ("A  Man\nwalks", "a man", True),
        ("red car, parked", "red car", True),
        ("bored cart", "red car", False),
        ("red carpet", "red car", False),
        ("caffe\u0301s", "caffe", False),
        ("एक की", "एक क", False),
        ("一只红色的猫", "红色的", True),
        ("a 猫cat", "cat", True),
        ("c++ code", "c++", True),
        ("b_red car", "red car", False),
        ("ÉTÉ indien", "été indien", True),
    ],
)
def test_phrases_are_found_as_whole_words(text: str, phrase: str, found: bool) -> None:
    assert holds(normalised(text), normalised(phrase)) == found


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=40))
def test_the_expression_for_ascii_finds_what_that_for_every_script_finds(text: str) -> None:
    general = {token["word"] for token in TOKEN.finditer(normalised(text))}
    assert words(text) == general
