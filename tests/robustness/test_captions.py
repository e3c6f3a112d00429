"""Several captions an image, several images a caption, and words that state a label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from features.encoders.load import load_encoder
from features.space.space import FeatureSpace
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.label_words import label_words, states
from mms_apps.robustness.models import ZeroShot, batched, correct
from mms_apps.robustness.retrieval import found_by_caption, text_to_image
from mms_apps.robustness.tasks import Task, load_task
from mms_apps.robustness.text_attacks import (
    Judge,
    TextAttackConfig,
    attack_text,
    vocabulary_of,
)
from tests.pairs.reading import png

CAPTIONS = (
    ["red", "a red thing"],
    ["blue", "shared"],
    ["shared", "green"],
    ["grey", "dull", "stone"],
    ["grey", "dull", "stone"],
)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> tuple[Task, ZeroShot]:
    folder = tmp_path_factory.mktemp("captions")
    lines = []
    for number, captions in enumerate(CAPTIONS):
        (folder / f"{number}.png").write_bytes(png((50 * number, 250 - 50 * number, 9)))
        lines.append(json.dumps({"image": f"{number}.png", "captions": captions}))
    (folder / "t.jsonl").write_text("\n".join(lines))
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    task = load_task(str(folder / "t.jsonl"), encoder, label="retrieval")
    assert len(task) == 5
    return task, task.classifier(encoder)


def test_a_row_for_each_caption_is_the_picture_with_all_of_them(
    several: tuple[Task, ZeroShot], clip_folder: Path, tmp_path: Path
) -> None:
    rows = []
    for number, captions in enumerate(CAPTIONS):
        (tmp_path / f"{number}.png").write_bytes(png((50 * number, 250 - 50 * number, 9)))
        rows += [f"{number}.png,{caption}" for caption in captions]
    (tmp_path / "t.csv").write_text("\n".join(["image,caption", *rows]))
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    task = load_task(tmp_path / "t.csv", encoder, label="retrieval")
    assert len(task) == len(CAPTIONS)
    assert set(task.prompts) == set(several[0].prompts)
    few = load_task(tmp_path / "t.csv", encoder, label="retrieval", count=4)
    assert len(few) == 4
    assert len({tuple(pixels.flatten().tolist()) for pixels in few.pixels}) == 4


def literal(model: ZeroShot, task: Task) -> tuple[list[bool], dict[str, bool]]:
    """Whether each image finds a caption of its own, and each caption an image, by loops."""
    images = batched(model.embed, task.pixels)
    own = [set(task.prompts[label]) for label in task.labels]
    rows = {text: model.vectors[row] for row, text in enumerate(task.texts)}
    by_image = [
        max(rows, key=lambda text: float(image @ rows[text])) in captions
        for image, captions in zip(images, own, strict=True)
    ]
    by_text = {
        text: text in own[max(range(len(images)), key=lambda i: float(images[i] @ rows[text]))]
        for text in rows
    }
    return by_image, by_text


def test_any_caption_of_an_image_counts(several: tuple[Task, ZeroShot]) -> None:
    """Whatever the texts' vectors are: each image is near a caption of its own, or of another."""
    task, model = several
    images = batched(model.embed, task.pixels)
    assert len(model.vectors) == 8 and len(task.classes) == 4
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        drawn = images[torch.randint(5, (8,), generator=generator)]
        noise = 0.3 * torch.randn(drawn.shape, generator=generator)
        model.vectors.copy_(F.normalize(drawn + noise, dim=1))
        by_image, by_text = literal(model, task)
        assert correct(model, task.pixels, task.labels).tolist() == by_image
        found = found_by_caption(model, task.pixels, task.pixels, task.labels)
        assert found.tolist() == [by_text[text] for text in task.texts]


@pytest.mark.parametrize("place", range(3))
def test_each_of_three_captions_counts(several: tuple[Task, ZeroShot], place: int) -> None:
    task, model = several
    stone = task.labels.mode().values
    images = batched(model.embed, task.pixels)
    model.vectors.copy_(-images.mean(0).expand_as(model.vectors))
    model.vectors[model.texts_of[stone][place]] = images.mean(0)
    assert torch.equal(correct(model, task.pixels, task.labels), task.labels == stone)


def test_attacks_turn_away_from_every_caption(space: FeatureSpace, task: Task) -> None:
    """With three captions an image, the attack leaves none that finds it."""
    gallery = load_task("embedded:heldout", space.encoder, label="retrieval", count=12)
    template = ("{}", "a drawing: {}", "look, {}")
    prompts = tuple(tuple(t.format(own[0]) for t in template) for own in gallery.prompts)
    import dataclasses

    gallery = dataclasses.replace(gallery, prompts=prompts)
    model = gallery.classifier(space.encoder)
    assert model.texts_of.shape == (12, 3)
    assert correct(model, gallery.pixels, gallery.labels).float().mean() > 0.8
    eps = 16 / 255
    attacked = run_attack(
        model, gallery.pixels, gallery.labels, "pgd", eps, AttackConfig(pgd_steps=15)
    ).images
    assert correct(model, attacked, gallery.labels).float().mean() < 0.3
    away = text_to_image(model, gallery.pixels, gallery.labels, eps, steps=15)
    found = found_by_caption(model, gallery.pixels, away, gallery.labels)
    assert found.shape == (36,) and found.float().mean() < 0.3


@pytest.mark.parametrize(
    ("word", "label"),
    [
        ("Women,", "woman"), ("policewomen", "woman"), ("woman's", "woman"), ("running:", "run"),
        ("raced", "race"), ("horses", "horse"), ("medium-dark", "dark"), ("children's", "child"),
        ("glasses", "glass"), ("knives", "knife"), ("people", "person"), ("fairies", "fairy"),
        ("danced", "dance"), ("Straße", "straße"), ("красная", "красная"), ("红色的猫", "猫"),
        ("trees", "tree"), ("cherries", "cherry"), ("carried", "carry"), ("boxes", "box"),
    ],
)  # fmt: skip
def test_inflections_state_the_label(word: str, label: str) -> None:
    assert states(word, {label})
    assert not states("unrelated", {label})


@pytest.mark.parametrize("word", ["the", "note", "picture", "kindly", "string", "-", "look,"])
def test_other_words_do_not(word: str) -> None:
    assert not states(word, {"woman", "tree", "dark", "running"})


def test_label_words_come_from_attributes_names_and_prompts(task: Task) -> None:
    """Of prompts only what tells the classes apart."""
    found = label_words(task, 0)
    assert {"man", "woman"} <= found
    assert task.attributes[0]["skin_tone"].split("-")[0] in " ".join(found)
    assert not {"of", "skin"} & found


@pytest.fixture(scope="module")
def gallery(space: FeatureSpace) -> tuple[Task, torch.Tensor, Judge]:
    found = load_task("embedded:heldout", space.encoder, label="retrieval", count=16)
    other = load_encoder("embedded-ssl", device="cpu")
    images = batched(found.classifier(space.encoder).embed, found.pixels)
    return found, images, Judge(other, batched(found.classifier(other).embed, found.pixels))


def test_words_that_state_the_label_neither_go_nor_come(
    space: FeatureSpace, gallery: tuple[Task, torch.Tensor, Judge]
) -> None:
    found, images, judge = gallery
    words = vocabulary_of(found.captions)
    config = TextAttackConfig(max_words=3, min_cosine=0.3)
    free, bound = 0, 0
    for row, text in enumerate(found.captions[:4]):
        labels = label_words(found, row)
        one = attack_text(space.encoder, text, row, images, words, config, labels=labels)
        for pair in one.changed:
            assert not any(states(word, labels) for word in pair)
        assert not one.judged
        any_word = attack_text(space.encoder, text, row, images, words, config)
        free += any(states(word, labels) for word, _ in any_word.changed)
        judged = attack_text(
            space.encoder, text, row, images, words, config, labels=labels, judge=judge
        )
        assert judged.judged
        if judged.changed:
            assert bool(judge.accepts([judged.text], row))
        bound += judged.found
    assert free > 0
    assert bound <= 4


def test_a_judge_that_accepts_nothing_stops_every_attack(
    space: FeatureSpace, gallery: tuple[Task, torch.Tensor, Judge]
) -> None:
    found, images, judge = gallery
    blind = Judge(judge.encoder, -judge.images)
    words = vocabulary_of(found.captions)
    own = (space.encoder.encode_texts(list(found.captions)) @ images.T).argmax(1)
    row = int((own == torch.arange(len(own))).nonzero()[0])
    text = found.captions[row]
    one = attack_text(
        space.encoder, text, row, images, words, TextAttackConfig(min_cosine=0.0), judge=blind
    )
    assert one.text == text and not one.found
