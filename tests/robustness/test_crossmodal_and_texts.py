"""Cross-modal adversarial images, and words replaced."""

from __future__ import annotations

import pytest
import torch

from features.encoders.load import load_encoder
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.crossmodal import ALL, CrossModalStudy, direction, targets_for
from mms_apps.robustness.distances import within
from mms_apps.robustness.models import ZeroShot, correct
from mms_apps.robustness.retrieval import found_by_caption, text_to_image
from mms_apps.robustness.tasks import Task, load_task
from mms_apps.robustness.text_attacks import TextAttackConfig, attack_text, vocabulary_of


@pytest.fixture(scope="module")
def gallery(space: FeatureSpace) -> Task:
    return load_task("embedded:heldout", space.encoder, label="retrieval", count=24)


@pytest.fixture(scope="module")
def study(space: FeatureSpace, gallery: Task) -> CrossModalStudy:
    other = load_encoder("embedded-ssl", device="cpu")
    return CrossModalStudy(
        space, gallery.pixels, list(gallery.captions), other, eps=16 / 255, steps=15
    )


def test_targets_are_other_texts() -> None:
    targets = targets_for(20, seed=0)
    assert sorted(targets.tolist()) == list(range(20))
    assert (targets != torch.arange(20)).all()
    assert torch.equal(targets, targets_for(20, seed=0))


def test_pushing_all_features_reaches_the_target_text(study: CrossModalStudy) -> None:
    nothing, found = study.without_attack(), study.run(ALL)
    assert within(study.pixels, found.images, 16 / 255, "Linf").all()
    assert nothing.first.float().mean() == 0
    assert found.first.float().mean() > 0.7
    assert found.nearer.float().mean() >= found.first.float().mean()
    assert found.matched.mean() > nothing.matched.nanmean()


def test_a_class_matches_more_than_a_clean_image(study: CrossModalStudy) -> None:
    found = study.run("CrossD")
    assert found.nearer.float().mean() > study.without_attack().nearer.float().mean()
    assert found.transferred_first.shape == found.first.shape


def test_controls_are_pushed_too(study: CrossModalStudy) -> None:
    drawn = study.controls("ImgD", seeds=1)
    assert [control.described.kind for control in drawn] == ["size", "energy", "pca"]
    for control in drawn:
        found = study.run_control(control)
        assert found.first.shape == (24,)
        assert found.images.min() >= 0


def test_a_direction_is_of_the_class_alone(space: FeatureSpace, study: CrossModalStudy) -> None:
    chosen = space.select("CrossD")
    found = direction(space, study.text, chosen)
    activations = space.encode_texts(study.text)
    kept = torch.zeros_like(activations)
    kept[:, chosen] = activations[:, chosen]
    wanted = torch.nn.functional.normalize(kept @ space.dictionary.directions, dim=1)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_retrieval_is_attacked_in_both_directions(space: FeatureSpace, gallery: Task) -> None:
    model = gallery.classifier(space.encoder)
    pixels, labels = gallery.pixels, gallery.labels
    assert found_by_caption(model, pixels, pixels, labels).float().mean() > 0.9
    eps = 16 / 255
    away = text_to_image(model, pixels, labels, eps, steps=15)
    assert within(pixels, away, eps, "Linf").all()
    assert found_by_caption(model, pixels, away, labels).float().mean() < 0.3
    found = run_attack(model, pixels, labels, "pgd", eps, AttackConfig(pgd_steps=15))
    assert correct(model, found.images, labels).float().mean() < 0.3


def test_words_are_replaced_within_the_bounds(space: FeatureSpace, gallery: Task) -> None:
    encoder = space.encoder
    with torch.no_grad():
        images = ZeroShot(encoder, torch.eye(encoder.dim)).plain(gallery.pixels)
    words = vocabulary_of(gallery.captions)
    config = TextAttackConfig(max_words=1, min_cosine=0.7, candidates=20)
    found, random_found = [], []
    for row, text in enumerate(gallery.captions[:8]):
        one = attack_text(encoder, text, row, images, words, config)
        changed = [a != b for a, b in zip(text.split(), one.text.split(), strict=True)]
        assert sum(changed) == len(one.changed) <= 1
        assert one.cosine >= 0.7
        vectors = encoder.encode_texts([text, one.text])
        assert float(vectors[0] @ vectors[1]) == pytest.approx(one.cosine, abs=1e-4)
        found.append(one.found)
        random_found.append(
            attack_text(encoder, text, row, images, words, config, greedy=False).found
        )
    assert sum(found) >= sum(random_found)


@pytest.mark.parametrize("settings", [{"max_words": 0}, {"min_cosine": 1.0}, {"candidates": 0}])
def test_bounds_that_are_none_are_refused(settings: dict) -> None:
    with pytest.raises(UserError):
        TextAttackConfig(**settings)
