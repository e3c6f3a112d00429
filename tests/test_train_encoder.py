"""The encoder's recipe in miniature."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from features.embedded.world import EmbeddedPairs
from features.encoders.load import load_encoder
from features.encoders.train_encoder import (
    EncoderTraining,
    SelfSupervision,
    TrainingPairs,
    augment,
    learning_rate,
    mask_words,
    train_encoder,
    train_tokenizer,
)

TINY = EncoderTraining(
    ssl=True,
    steps=3,
    batch_size=16,
    image_size=64,
    vision_width=8,
    text_width=32,
    text_layers=1,
    dim=16,
    vocabulary=600,
)


class FewPairs(EmbeddedPairs):
    """300 of the training pairs, most of them variants of a few roles."""

    @property
    def rows(self) -> list[dict]:
        return super().rows[1500:1800]


@pytest.fixture(scope="module")
def few() -> FewPairs:
    return FewPairs("train")


@pytest.fixture(scope="module")
def trained(few: FewPairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_encoder(few, tmp_path_factory.mktemp("encoder"), TINY, progress=False)


def test_the_saved_folder_loads_as_any_open_clip_model(trained: Path) -> None:
    encoder = load_encoder(f"local-dir:{trained}")
    assert encoder.dim == 16
    texts = encoder.encode_texts(["a judge", "a woman judge"])
    assert texts.shape == (2, 16)
    assert torch.allclose(texts.norm(dim=-1), torch.ones(2), atol=1e-3)
    assert not (trained / "checkpoint.safetensors").exists()
    assert json.loads((trained / "training.json").read_text())["training"]["ssl"] is True


def test_a_cut_off_run_goes_on_to_the_same_weights(
    few: FewPairs, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import features.encoders.train_encoder as recipe

    def save_each_step_then_die(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        if arguments[3] == 2:
            raise KeyboardInterrupt

    original = recipe.save_checkpoint
    monkeypatch.setattr(recipe, "save_checkpoint", save_each_step_then_die)
    monkeypatch.setattr(recipe, "CHECKPOINT_STEPS", 1)
    with pytest.raises(KeyboardInterrupt):
        train_encoder(few, tmp_path, TINY, progress=False)
    assert (tmp_path / "checkpoint.safetensors").exists()
    monkeypatch.setattr(recipe, "save_checkpoint", original)
    train_encoder(few, tmp_path, TINY, progress=False)
    whole = load_file(trained / "open_clip_model.safetensors")
    resumed = load_file(tmp_path / "open_clip_model.safetensors")
    for name, tensor in whole.items():
        assert torch.allclose(tensor.float(), resumed[name].float(), atol=1e-3), name


def test_batches_hold_whole_groups_and_no_pair_twice(few: FewPairs) -> None:
    pairs = TrainingPairs(few, 64, "role")
    indices = pairs.indices(64, random.Random(0))
    assert len(indices) == len(set(indices)) == 64
    chosen = set(indices)
    assert sum(len(g) for g in pairs.groups if set(g) <= chosen) >= 16


def test_the_same_seed_draws_the_same_batch(few: FewPairs) -> None:
    pairs = TrainingPairs(few, 64, "role")
    pixels, captions = pairs.draw(8, random.Random(3))
    pixels_again, captions_again = pairs.draw(8, random.Random(3))
    assert captions == captions_again
    assert torch.equal(pixels, pixels_again)
    assert pixels.shape == (8, 3, 64, 64)


def test_views_stay_in_range_and_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(4, 3, 64, 64, generator=generator)
    first, second = augment(pixels, generator), augment(pixels, generator)
    assert first.shape == pixels.shape
    assert first.min() >= 0 and first.max() <= 1
    assert not torch.allclose(first, second, atol=0.05)


def test_the_end_of_text_has_the_highest_id() -> None:
    tokenizer = train_tokenizer(["a man judge", "a woman judge: dark skin tone"] * 5, 400)
    ids = tokenizer("a man judge")["input_ids"]
    assert ids[-1] == len(tokenizer) - 1 == max(ids)
    assert ids[0] == len(tokenizer) - 2
    unseen = tokenizer("Zebra!")["input_ids"][1:-1]
    assert unseen and max(unseen) < len(tokenizer) - 2


def test_masking_leaves_start_end_and_padding() -> None:
    tokens = torch.tensor([[8, 1, 2, 3, 9, 9]] * 200)
    masked = mask_words(tokens, 0.5, 8, torch.Generator().manual_seed(0))
    assert torch.equal(masked[:, [0, 4, 5]], tokens[:, [0, 4, 5]])
    assert 0.4 < (masked[:, 1:4] == 8).float().mean() < 0.6


def test_image_loss_is_least_for_equal_views_of_different_images() -> None:
    ssl = SelfSupervision(dim=8, vocabulary=10)
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    assert ssl.image_loss(x, x) < ssl.image_loss(x, x.flip(0))


def test_word_loss_against_a_double_loop() -> None:
    ssl = SelfSupervision(dim=4, vocabulary=7)  # 5 is the start, 6 the end
    embedding = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[5, 1, 2, 6, 6], [5, 3, 6, 6, 6]])
    losses = []
    for row, caption in enumerate(tokens.tolist()):
        cosines = [torch.cosine_similarity(embedding[row], word, dim=0) for word in ssl.words]
        log_probabilities = (torch.stack(cosines) / ssl.word_temperature).log_softmax(0)
        words = [t for t in caption if t < 5]
        losses.append(-sum(log_probabilities[w] for w in words) / len(words))
    assert torch.allclose(ssl.text_loss(embedding, tokens), torch.stack(losses).mean())


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    training = dataclasses.replace(TINY, steps=100, warmup_steps=10)
    rates = [learning_rate(step, training) for step in range(101)]
    assert max(rates) == pytest.approx(training.learning_rate)
    assert rates[0] < rates[9] and rates[100] == pytest.approx(0, abs=1e-9)
