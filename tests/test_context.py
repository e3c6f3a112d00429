"""Captions beyond an encoder's context: counted, and kept as far as the encoder sees them."""

from __future__ import annotations

import json
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from features.dictionary import TrainConfig, fit_dictionary
from features.encoders.context import Context
from features.encoders.load import load_encoder
from features.encoders.two_models import Tokenize
from features.pairs.open import open_pairs
from features.reports.report import write_report
from features.scores.terms import pair_terms, vocabulary
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.batches import Batches
from features.store.content import KnownContents
from features.store.extract import extract
from features.store.store import ActivationStore
from tests.pairs.reading import png

SIMPLE = SimpleTokenizer()


def seen(tokenizer: Callable, texts: list[str]) -> tuple[list[str], int]:
    return Context(tokenizer).as_seen(texts, tokenizer(texts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a short one, with punctuation!", None),
        ("a " * 74 + "dog", None),  # with start and end: exactly 77
        ("a " * 75 + "dog", ("a " * 75).strip()),
        ("a " * 200 + "zebra", ("a " * 75).strip()),
        ("a " * 74 + "incomprehensibilities zebra", ("a " * 74).strip()),  # half a word fits
        ("1234567890" * 7 + "12345", None),  # a token a digit
        ("A,\tB;\n" * 40, ("A,\tB;\n" * 18 + "A,")),
    ],
)
def test_openai_tokens(text: str, expected: str | None) -> None:
    expected = text if expected is None else expected
    assert seen(SIMPLE, [text, "dog"]) == ([expected, "dog"], text != expected)


@pytest.mark.parametrize("start", ["", "look: ", "a photo of "])
def test_where_no_spaces_part_words_it_is_cut_between_characters(start: str) -> None:
    text = start + "\u65e5\u672c\u8a9e" * 30
    (found,), cut = seen(SIMPLE, [text])
    assert cut == 1 and text.startswith(found)
    longer = text[: len(found) + 1]
    assert len(SIMPLE.encode(found)) <= 75 < len(SIMPLE.encode(longer))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["red", "extraordinarily", "don't", "42", "&amp;"]), max_size=120))
def test_what_is_seen_is_the_longest_beginning_that_fits(words: list[str]) -> None:
    text = " ".join(words)
    (found,), cut = seen(SIMPLE, [text])
    fitting = [n for n in range(len(words) + 1) if len(SIMPLE.encode(" ".join(words[:n]))) <= 75]
    assert found == " ".join(words[: max(fitting)])
    assert cut == (len(SIMPLE.encode(text)) > 75)


@pytest.fixture
def hf(clip_folder: Path) -> HFTokenizer:
    return load_encoder(f"local-dir:{clip_folder}", "cpu").tokenizer


@pytest.mark.parametrize("end", [None, "<pad>"])
def test_tokenizers_of_transformers(hf: HFTokenizer, end: str | None) -> None:
    """Eight places; with and without an end token that is the padding."""
    if end is not None:
        hf.tokenizer.backend_tokenizer.post_processor = _ending_in(end, hf)
    texts = ["a red circle", "a red circle of a line", "a red circle of a blue line", "a " * 99]
    found, cut = seen(hf, texts)
    assert found == [*texts[:2], "a red circle of a blue", "a a a a a a"] and cut == 2
    judge = Tokenize(hf.tokenizer)
    judge.context_length = 8
    assert seen(judge, texts) == (found, cut)
    assert seen(judge, texts[:1]) == (texts[:1], 0)


def _ending_in(end: str, hf: HFTokenizer) -> object:
    from tokenizers import processors

    ids = {word: hf.tokenizer.convert_tokens_to_ids(word) for word in ("<start>", end)}
    return processors.TemplateProcessing(
        single=f"<start> $A {end}", special_tokens=list(ids.items())
    )


@pytest.mark.parametrize("start", ["", "a dog "])
def test_words_without_end_are_not_tokenized_whole(tmp_path: Path, start: str) -> None:
    text = start + "".join(random.Random(0).choices(string.ascii_letters, k=100_000))
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text(text)
    source = open_pairs(str(tmp_path))
    encoder = load_encoder("embedded")
    lengths = []

    def tokenizer(texts: list[str], **options: int) -> torch.Tensor:
        lengths.extend(map(len, texts))
        return encoder.tokenizer(texts, **options)

    tokenizer.context_length = encoder.tokenizer.context_length  # type: ignore[attr-defined]
    todo = [(0, source.parts()[0])]
    (batch,) = Batches(source, todo, encoder.preprocessing, tokenizer, 8, KnownContents())
    assert batch.captions_cut == 1 and batch.samples[0].captions[0].startswith(start)
    assert max(lengths) < 10_000
    assert batch.tokens is not None and torch.equal(batch.tokens, encoder.tokenizer([text]))


def test_others_are_taken_to_cut_nothing() -> None:
    def fixed(texts: list[str]) -> torch.Tensor:
        return torch.zeros(len(texts), 5, dtype=torch.long)

    assert seen(fixed, ["a " * 500]) == (["a " * 500], 0)


@pytest.fixture
def long_captions(imagefolder: Path, tmp_path: Path) -> Path:
    """The word "yellow" stands where the encoder doesn't see it, in 30 of 40 pairs."""
    folder = tmp_path / "long"
    shutil.copytree(imagefolder, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
    for number, row in enumerate(rows):
        del row["tags"], row["colour"]
        more = f"of a drawing of a {row.pop('shape') or 'line'} of yellow"
        row["text"] = "a red line" if number % 4 == 0 else ["a line", f"a line {more}"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_names_and_concepts_stand_on_what_is_seen(
    long_captions: Path, clip_folder: Path, tmp_path: Path, mms
) -> None:
    encoder = f"local-dir:{clip_folder}"
    code, out, err = mms(
        "extract", "--pairs", long_captions, "--encoder", encoder, "--out", tmp_path / "s"
    )
    assert code == 0 and "40 pairs" in out
    assert f"30 captions are longer than the context of {encoder.split('/')[0][:10]}" in err
    store = ActivationStore.open(tmp_path / "s")
    assert store.config.captions_cut == 30
    captions = store.samples()["captions"].to_pylist()
    assert captions[0] == ["a red line"] and captions[1] == ["a line", "a line of a drawing of"]
    assert "drawing" in vocabulary(store.sample_batches(100), max_share=0.9)
    assert "yellow" not in vocabulary(store.sample_batches(100), max_share=0.9)
    assert "of yellow" not in pair_terms(store.samples(), ["of yellow"]).terms
    assert "yellow" not in pair_terms(store.samples()).terms
    # Nothing of what is seen is lost.
    model = load_encoder(encoder, "cpu")
    whole = extract(
        open_pairs(str(long_captions)), model, tmp_path / "t", workers=1, progress=False
    )
    assert whole.config.captions_cut == 30
    row = model.encode_texts(captions[1]).mean(0)
    assert torch.allclose(store.rows([1])[1][0], row / row.norm(), atol=2e-3)
    dictionary = fit_dictionary(store, TrainConfig("identity"), tmp_path / "d", progress=False)
    space = score(store, dictionary, progress=False)
    assert space.config.captions_cut == 30
    assert FeatureSpace.load(space.save(tmp_path / "space"), device="cpu").config.captions_cut == 30
    assert "30 are longer" in write_report(space, tmp_path / "report.html").read_text()
    assert "cut to what it sees: 30" in (tmp_path / "space" / "README.md").read_text()
