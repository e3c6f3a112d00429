"""Names from captions, tags and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from features.errors import UserError
from features.scores.naming import (
    NamingStatistics,
    name_features,
    naming_floor,
)
from features.scores.terms import pair_terms, phrases_among, read_vocabulary, vocabulary
from features.store.write import sample_table

PAIRS = 80


def samples() -> pa.Table:
    """Pair i is red where i % 4 == 0, a moon where i % 5 == 0, and tagged night with the moon."""
    captions = [
        [f"A {'red' if i % 4 == 0 else 'grey'} thing, N{i}"] + (["full moon"] if i % 5 == 0 else [])
        for i in range(PAIRS)
    ]
    attributes: list[dict[str, str | None]] = [
        {"tags": "night|Dark Sky" if i % 5 == 0 else None, "size": "big" if i % 3 == 0 else None}
        for i in range(PAIRS)
    ]
    return sample_table([str(i) for i in range(PAIRS)], captions, attributes=attributes)


def every(k: int) -> Tensor:
    return (torch.arange(PAIRS) % k == 0).float()


def statistics(image: Tensor, text: Tensor, batch: int = 30) -> NamingStatistics:
    table = samples()
    result = NamingStatistics(image.shape[1], vocabulary([table]))
    for start in range(0, PAIRS, batch):
        stop = start + batch
        result.update(image[start:stop], text[start:stop], table.slice(start, batch))
    return result


def terms_by_pair(table: pa.Table, phrases: Sequence[str] = ()) -> list[set[str]]:
    """The terms of each pair."""
    found = pair_terms(table, phrases)
    terms: list[set[str]] = [set() for _ in range(len(table))]
    for pair, term in zip(found.pair, found.term, strict=True):
        assert found.terms[term] not in terms[pair]  # each once
        terms[pair].add(found.terms[term])
    return terms


def test_terms_are_words_tags_and_values() -> None:
    terms = terms_by_pair(samples())[0]
    assert terms == {"red", "thing", "n0", "full", "moon", "night", "dark sky", "size: big"}


def test_terms_of_pairs_without_captions_or_values() -> None:
    table = pa.table(
        {
            "captions": pa.array([["a-dog a-dog-"], [], ["Ünten x"]], pa.list_(pa.string())),
            "attribute.tags": pa.array(["A| b  C|", None, ""]),
            "attribute.unknown": pa.nulls(3, pa.string()),
        }
    )
    assert terms_by_pair(table) == [{"a-dog", "a", "b c"}, set(), {"ünten"}]
    parts = pa.concat_tables([table[1:], table[:1]])
    assert terms_by_pair(parts, ["b c", "a"]) == [set(), {"ünten"}, {"a-dog", "a", "b c"}]
    assert terms_by_pair(table[:0]) == []


def test_vocabulary_leaves_out_the_rare_and_the_common() -> None:
    terms = vocabulary([samples()])
    assert set(terms) == {"size: big", "red", "full", "moon", "night", "dark sky"}
    assert terms[:2] == ["size: big", "red"]  # the commonest first
    assert vocabulary([samples()], max_terms=1) == ["size: big"]
    assert "grey" in vocabulary([samples()], max_share=0.8)
    assert "n0" in vocabulary([samples()], min_pairs=1)


@pytest.mark.parametrize("batch", [7, 80])
def test_correlations_match_numpy(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(PAIRS, 3, generator=generator) + every(5)[:, None]
    text = -torch.rand(PAIRS, 3, generator=generator)
    result = statistics(image, text, batch)
    presence = np.array([[t in terms for t in result.terms] for terms in terms_by_pair(samples())])
    for modality, activations in enumerate((image, text)):
        correlations = result.correlations(modality)
        for term in range(len(result.terms)):
            for feature in range(3):
                expected = np.corrcoef(
                    presence[:, term], activations[:, feature].abs().double().numpy()
                )[0, 1]
                assert correlations[term, feature].item() == pytest.approx(expected, abs=1e-5)


def test_features_take_their_term_in_the_stronger_modality() -> None:
    image = torch.stack([every(4), every(3), every(4), torch.zeros(PAIRS)], dim=1)
    text = torch.stack([every(3) / 9, every(3), every(3) * 9, torch.zeros(PAIRS)], dim=1)
    share = np.array([0.9, 0.5, 0.1, np.nan])
    names = name_features(statistics(image, text), share, ["ImgD", "CrossD", "TextD", "unscored"])
    assert names.names == ["red", "size: big", "size: big", ""]
    np.testing.assert_allclose(names.scores[:3], 1, atol=1e-6)
    assert np.isnan(names.scores[3])


def test_features_of_one_class_with_one_name_get_a_second_term() -> None:
    noisy = every(4) + 0.5 * every(3)
    image = torch.stack([noisy, every(4), every(4) + 0.1 * every(3)], dim=1)
    result = statistics(image, torch.zeros_like(image))
    share = np.ones(3)
    together = name_features(result, share, ["ImgD", "ImgD", "CrossD"]).names
    assert together == ["red, size: big", "red", "red"]
    assert name_features(result, share, ["ImgD", "TextD", "CrossD"]).names == ["red"] * 3


def test_a_second_term_says_something_else() -> None:
    terms = ["gender: man", "man", "a man", "tall"]
    result = NamingStatistics(2, terms)
    activations = torch.tensor([[5.0, 4.0], [5.0, 5.0], [0.0, 0.0], [1.0, 1.0]])
    captions = [["a man"], ["a tall man"], ["a moon"], ["a tall tree"]]
    table = pa.table({"captions": captions, "attribute.gender": ["man", "man", None, None]})
    result.update(activations, activations, table)
    names = name_features(result, np.ones(2), ["ImgD", "ImgD"]).names
    assert sorted(name.removeprefix("gender: ") for name in names) == ["man", "man, tall"]


def test_merging_equals_one_pass() -> None:
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.rand(PAIRS, 3, generator=generator) for _ in range(2))
    table = samples()
    whole = statistics(image, text)
    halves = [NamingStatistics(3, whole.terms) for _ in range(2)]
    for half, rows in zip(halves, (slice(0, 33), slice(33, PAIRS)), strict=True):
        half.update(image[rows], text[rows], table.slice(rows.start, rows.stop - rows.start))
    halves[1].merge(halves[0])
    for modality in (0, 1):
        torch.testing.assert_close(
            halves[1].correlations(modality), whole.correlations(modality), atol=1e-6, rtol=1e-6
        )
    with pytest.raises(ValueError, match="terms"):
        halves[0].merge(NamingStatistics(3, ["other"]))


def test_phrases_and_terms_of_any_script_are_found() -> None:
    terms = ["red car", "a man", "手机", "猫", "c++", "x", "size: red car"]
    captions = [["a red car"], ["a red carpet"], ["手机壳"], ["一只猫", "c++ x"], ["a mansion"]]
    table = pa.table({"captions": captions})
    assert phrases_among(["red", *terms]) == ["red car", "a man", "c++", "x"]
    found = [terms_ & set(terms) for terms_ in terms_by_pair(table, phrases_among(terms))]
    assert found == [{"red car"}, set(), {"手机"}, {"猫", "c++", "x"}, set()]


def test_names_below_the_floor_are_left_out() -> None:
    image = torch.stack([every(4), every(4) + 2 * every(7), every(3)], dim=1)
    result = statistics(image, torch.zeros_like(image))
    share = np.ones(3)
    best = name_features(result, share, ["ImgD"] * 3)
    assert all(best.names)
    floor = float(best.scores[1])
    names = name_features(result, share, ["ImgD"] * 3, floor)
    assert names.names[1] == "" and np.isnan(names.scores[1])
    assert names.names[0] == "red" and names.names[2] == "size: big"


def test_few_features_of_permuted_activations_are_named() -> None:
    """Captions of random words that nothing goes with: names by chance alone."""
    rng = np.random.default_rng(0)
    pairs, features = 400, 300
    captions = [[" ".join(f"w{n}" for n in rng.integers(60, size=4))] for _ in range(pairs)]
    table = sample_table([str(i) for i in range(pairs)], captions)
    terms = vocabulary([table])
    activations = torch.from_numpy(rng.random((pairs, features)) * (rng.random((pairs, 1)) < 0.3))
    activations[:, -1] = torch.tensor(["w7" in caption[0].split() for caption in captions])
    real, chance = (NamingStatistics(features, terms) for _ in range(2))
    real.update(activations, activations, table)
    order = torch.from_numpy(rng.permutation(pairs))
    chance.update(activations[order], activations[order], table)
    share = np.full(features, 0.5)
    floor = naming_floor(chance, share)
    assert 0.05 < floor < 0.4
    names = name_features(real, share, ["CrossD"] * features, floor).names
    assert sum(name != "" for name in names) / features < 0.1
    assert names[-1] == "w7"
    assert naming_floor(chance, np.full(features, np.nan)) == 0
    assert naming_floor(NamingStatistics(2, []), np.ones(2)) == 0


def test_without_a_vocabulary_there_are_no_names() -> None:
    result = NamingStatistics(2, [])
    result.update(torch.rand(PAIRS, 2), torch.rand(PAIRS, 2), samples())
    assert name_features(result, np.ones(2), ["ImgD"] * 2).names == ["", ""]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_terms_are_read_in_any_encoding_that_can_be_told(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "terms.txt"
    path.write_bytes("caf\u00e9\r\n\r\nna\u00efve dog\r\ncaf\u00e9\r\n".encode(encoding))
    assert read_vocabulary(path) == ["caf\u00e9", "na\u00efve dog"]


def test_terms_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    with pytest.raises(UserError, match=r"terms\.txt: cannot be read"):
        read_vocabulary(path)
    path.write_bytes("\u72ac\n\u732b\n".encode("shift-jis"))
    with pytest.raises(UserError, match=r"terms\.txt: byte .* save the file as UTF-8"):
        read_vocabulary(path)
