"""What carries a concept, and where better data would help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

from features.analysis.concepts import (
    SOURCES,
    TOO_FEW,
    Support,
    _advice,
    attribute_concepts,
    concept_support,
    feature_auroc,
)
from features.errors import UserError
from features.reports.concepts import write_concepts
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store
from tests.test_space import axes

PAIRS, DIM = 200, 16
CONCEPTS = ("seen: yes", "said: yes", "shown: yes", "hidden: yes", "split: yes", "cat", "rare")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Concepts that images show alone, texts say alone, both or neither carry, and one of which
    each modality carries a half."""
    rng = np.random.default_rng(0)
    image, text = 0.1 * torch.rand(2, PAIRS, DIM, generator=torch.Generator().manual_seed(0))
    seen, said, shown, hidden, half = (rng.random(PAIRS) < 0.4 for _ in range(5))
    other_half = rng.random(PAIRS) < 0.4
    split = half | other_half
    for place, has, vectors in (
        (0, seen, (image,)),
        (1, said, (text,)),
        (2, shown, (image, text)),
        (3, half, (image,)),
        (4, other_half, (text,)),
    ):
        for vector in vectors:
            vector[torch.from_numpy(has), place] += 1
    labels = {"seen": seen, "said": said, "shown": shown, "hidden": hidden, "split": split}
    attributes = [
        {name: "yes" if has[row] else None for name, has in labels.items()} for row in range(PAIRS)
    ]
    captions = [["a cat" if row % 2 else "a dog"] for row in range(PAIRS)]
    captions[0] = ["a rare one"]
    ids = [str(row) for row in range(PAIRS)]
    return write_store(
        tmp_path_factory.mktemp("stores") / "store",
        F.normalize(image, dim=1),
        F.normalize(text, dim=1),
        sample_table(ids, captions, attributes=attributes),
        StoreConfig("tiny", "print of tiny", "concepts", "concepts-print", DIM),
    )


@pytest.fixture(scope="module")
def space(store: ActivationStore) -> FeatureSpace:
    return score(store, axes(), progress=False)


def test_feature_auroc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    activations = np.maximum(0, rng.normal(size=(60, 5))).round(1)
    activations[:, 4] = 0
    labels = rng.random((60, 3)) < 0.4
    labels[:, 2] = True
    found = feature_auroc(csr_matrix(activations), labels)
    for concept in range(2):
        for feature in range(5):
            expected = roc_auc_score(labels[:, concept], activations[:, feature])
            assert found[concept, feature] == pytest.approx(expected)
    assert np.isnan(found[2]).all()


def test_the_modality_that_lacks_a_concept_is_where_to_invest(
    store: ActivationStore, space: FeatureSpace, tmp_path: Path
) -> None:
    found = {c.name: c for c in concept_support(space, store, CONCEPTS, progress=False)}
    verdicts = {name: concept.verdict for name, concept in found.items()}
    assert verdicts == {
        "seen: yes": "captions",
        "said: yes": "images",
        "shown: yes": "neither",
        "hidden: yes": "both",
        "split: yes": "both",
        "cat": "both",
        "rare": "too few pairs to say",
    }
    assert "only together" in found["split: yes"].advice
    assert "Neither" in found["hidden: yes"].advice
    assert found["cat"].labels_from == "captions"
    assert "by definition" in found["cat"].advice
    assert found["rare"].support is None and "1 of 200" in found["rare"].advice
    seen = found["seen: yes"]
    assert seen.support is not None
    for support in seen.support.values():
        assert support.low <= support.auroc <= support.high
    assert seen.support["image"].auroc > 0.99 > 0.7 > seen.support["text"].auroc
    assert seen.carriers[0]["feature"] == 0
    page = write_concepts(list(found.values()), space, tmp_path).read_text()
    assert "Invest in captions." in page
    record = json.loads((tmp_path / "concepts.json").read_text())
    assert [c["verdict"] for c in record["concepts"]] == list(verdicts.values())


def support(image: tuple[float, float], text: tuple[float, float], both: tuple[float, float]):  # type: ignore[no-untyped-def]
    return {
        source: Support((low + high) / 2, low, high)
        for source, (low, high) in zip(SOURCES, (image, text, both), strict=True)
    }


YES, NO, OPEN = (0.93, 0.99), (0.6, 0.8), (0.85, 1.0)


@pytest.mark.parametrize(
    ("image", "text", "both", "verdict", "words"),
    [
        (YES, YES, YES, "neither", "each carry it well"),
        (NO, YES, YES, "images", "images do not"),
        (YES, NO, YES, "captions", "texts do not"),
        (NO, NO, YES, "both", "only together"),
        (NO, NO, NO, "both", "Neither"),
        (OPEN, YES, YES, TOO_FEW, "Texts and both together carry it well. Whether images"),
        (YES, OPEN, YES, TOO_FEW, "Whether texts carry it well is open"),
        (OPEN, OPEN, OPEN, TOO_FEW, "images and texts and both together carry it well is open"),
        (OPEN, NO, YES, TOO_FEW, "Texts do not carry it well."),
        (NO, NO, OPEN, TOO_FEW, "Whether both together"),
        ((0.9, 0.95), (0.5, 0.8999), YES, "captions", "Images carry it well"),
        ((0.5, 0.9), YES, YES, TOO_FEW, "0.50 to 0.90"),
    ],
)
def test_an_interval_that_holds_the_bar_says_too_few(  # type: ignore[no-untyped-def]
    image, text, both, verdict: str, words: str
) -> None:
    found, advice = _advice(support(image, text, both), 25, 200, True)
    assert found == verdict
    assert words in advice
    if verdict == TOO_FEW:
        assert "25 pairs" in advice and "invest in images" not in advice


def test_more_pairs_than_the_bound_are_sampled(store: ActivationStore, space: FeatureSpace) -> None:
    [found] = concept_support(space, store, ["shown: yes"], max_pairs=120, progress=False)
    assert found.pairs == 120
    assert found.verdict == "neither"


def test_concepts_of_an_attribute(store: ActivationStore) -> None:
    assert attribute_concepts(store, "seen") == ["seen: yes"]
    with pytest.raises(UserError, match="no such attribute; they have seen, said"):
        attribute_concepts(store, "colour")


def test_a_store_of_another_encoder_is_refused(space: FeatureSpace, tmp_path: Path) -> None:
    config = StoreConfig("other", "print of other", "pairs", "pairs-print", DIM)
    vectors = F.normalize(torch.rand(3, DIM), dim=1)
    other = write_store(
        tmp_path / "store", vectors, vectors, sample_table(list("abc"), [["x"]] * 3), config
    )
    with pytest.raises(UserError, match="belong to tiny"):
        concept_support(space, other, ["x"], progress=False)
