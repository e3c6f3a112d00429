"""The generator's parts: twins of the encoder's towers, and a training in miniature."""

from __future__ import annotations

import dataclasses
import json
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from features.embedded import ENCODERS
from features.embedded.world import EmbeddedPairs
from features.encoders.encoder import Encoder
from features.errors import UserError
from mms_apps.steering.generator_training import optimise, train
from mms_apps.steering.generator_training.autoencoder import perceptual_distance
from mms_apps.steering.generator_training.conditions import raw_embeddings
from mms_apps.steering.generator_training.drawings import draw_images
from mms_apps.steering.generator_training.examples import Examples, predicted
from mms_apps.steering.generator_training.own_drawings import OwnDrawings
from mms_apps.steering.generator_training.picture_reader import PictureReader
from mms_apps.steering.generator_training.refinement import refine_denoiser
from mms_apps.steering.generator_training.schedules import PROMPT_ALONE, noise_schedule
from mms_apps.steering.generator_training.settings import RefinementTraining
from mms_apps.steering.generator_training.text_encoder import clip_text_model
from mms_apps.steering.image_encoder import OpenClipVisionModel
from tests.steering.conftest import TINY, FewPairs

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_the_text_encoder_is_the_towers_twin(encoder: Encoder) -> None:
    config = json.loads((ENCODERS / "embedded-ssl" / "open_clip_config.json").read_text())
    twin = clip_text_model(encoder.model, config["model_cfg"]["text_cfg"])
    tokens = encoder.tokenize(["a picture of woman: dark skin tone", "cat"])
    with torch.no_grad():
        states = twin(tokens).last_hidden_state  # [2, context, width]
        ends = states[torch.arange(2), tokens.argmax(dim=1)]  # [2, width]
        ours = ends @ encoder.model.text_projection  # type: ignore[operator]
        theirs = encoder.model.encode_text(tokens)  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_pipeline_loads_and_its_image_encoder_is_the_encoders(
    folder: Path, encoder: Encoder
) -> None:
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(pipeline.image_encoder, OpenClipVisionModel)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(noise)
    pixels = pipeline.feature_extractor(images=image, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels[0], encoder.preprocess(image), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        ours = pipeline.image_encoder(pixels).image_embeds
        theirs = encoder.model.encode_image(pixels)  # type: ignore[operator]
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)  # saved in half precision


def test_prompt_alone_reference_alone_and_both_give_pictures(folder: Path) -> None:
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    reference = Image.new("RGB", (64, 64), "red")
    nothing = torch.zeros(1, 128)
    for given in (
        {"prompt": "cat", "image_embeds": nothing, "noise_level": PROMPT_ALONE},
        {"image": reference},
        {"prompt": "cat", "image": reference},
    ):
        generator = torch.Generator().manual_seed(0)
        found = pipeline(**given, num_inference_steps=2, generator=generator).images
        assert [image.size for image in found] == [(64, 64)]


def test_a_cut_training_ends_the_same(folder: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def killed(*arguments: object, **others: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EmbeddedPairs", FewPairs)
        patch.setattr(optimise, "CHECKPOINT_STEPS", 1)
        patch.setattr(train, "train_denoiser", killed)
        with pytest.raises(Killed):
            train.train_generator(tmp_path, TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EmbeddedPairs", FewPairs)
        with pytest.raises(UserError, match="other settings"):
            train.train_generator(tmp_path, dataclasses.replace(TINY, seed=1))
        train.train_generator(tmp_path, TINY)
    for part in ("vae", "unet"):
        assert (tmp_path / part / WEIGHTS).read_bytes() == (folder / part / WEIGHTS).read_bytes()


def test_a_cut_refinement_ends_the_same(folder: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    advance, calls = OwnDrawings.advance, []

    def killed_at_the_third(self: OwnDrawings, *given: Any) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise Killed
        advance(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EmbeddedPairs", FewPairs)
        patch.setattr(optimise, "CHECKPOINT_STEPS", 1)
        patch.setattr(OwnDrawings, "advance", killed_at_the_third)
        with pytest.raises(Killed):
            train.train_generator(tmp_path, TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EmbeddedPairs", FewPairs)
        train.train_generator(tmp_path, TINY)
    again, whole = (load_file(out / "unet" / WEIGHTS) for out in (tmp_path, folder))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_refinement_goes_on(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "longer")
    steps = TINY.refinement.steps + 1
    longer = dataclasses.replace(TINY, refinement=dataclasses.replace(TINY.refinement, steps=steps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EmbeddedPairs", FewPairs)
        train.train_generator(tmp_path / "longer", longer)
    checkpoint = tmp_path / "longer" / "checkpoints" / "refined.safetensors"
    with safe_open(checkpoint, "pt") as file:
        assert file.metadata()["step"] == str(steps)


def test_a_training_starts_from_another_generator(folder: Path, tmp_path: Path) -> None:
    on = dataclasses.replace(TINY, start=str(folder), seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EmbeddedPairs", FewPairs)
        with pytest.raises(UserError, match="nowhere: no generator to start from"):
            train.train_generator(tmp_path, dataclasses.replace(TINY, start="nowhere"))
        train.train_generator(tmp_path, on)
    kept = [load_file(out / "vae" / WEIGHTS) for out in (folder, tmp_path)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    before, after = (load_file(out / "unet" / WEIGHTS) for out in (folder, tmp_path))
    moved = [float((before[name] - after[name]).abs().max()) for name in before]
    assert 0 < max(moved) < 0.05  # a few small steps away, not drawn afresh


def shown_everywhere(count: int, side: int = 16) -> Examples:
    """Latents that show their embedding of four dimensions everywhere; no prompts."""
    generator = torch.Generator().manual_seed(0)
    standard = torch.randn(count, 4, generator=generator)
    places = torch.randn(4, 3 * side * side, generator=generator)
    return Examples(
        (standard @ places).view(count, 3, side, side) / 2,
        standard,
        (torch.zeros(1, 2, 8), torch.zeros(count, dtype=torch.long)),
        torch.ones(count).double(),
        StableUnCLIPImageNormalizer(embedding_dim=4).requires_grad_(False),
    )


def test_the_reader_reads_what_the_encoder_would(folder: Path, encoder: Encoder) -> None:
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    reader = PictureReader(pipeline.vae, encoder, pipeline.image_normalizer)
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_(True)
    read = reader(latents)
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        pictures = pipeline.image_processor.postprocess(decoded)
        embeddings = raw_embeddings(
            encoder, torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
        )
    wanted = pipeline.image_normalizer.scale(embeddings)
    assert (read - wanted).abs().mean() < 0.02 * wanted.abs().mean()  # pixels are rounded
    read.square().sum().backward()
    assert latents.grad is not None and (latents.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(parameter.requires_grad for parameter in reader.parameters())


def test_own_drawings_take_ddims_steps_and_begin_anew() -> None:
    own = OwnDrawings(shown_everywhere(20), pool=6, steps=4, seed=0)
    assert own.done.tolist() == [0, 1, 2, 3, 0, 1]
    ddim = DDIMScheduler(**noise_schedule(), clip_sample=False, set_alpha_to_one=False)
    ddim.timesteps = own.timesteps
    ddim.num_inference_steps = own.steps
    generator = torch.Generator().manual_seed(1)
    before, asked = own.latents.clone(), own.asked.clone()
    velocity = torch.randn(before.shape, generator=generator)
    times = own.timesteps[own.done].tolist()
    estimate = own.estimate(velocity)
    own.advance(velocity, generator)
    assert own.done.tolist() == [1, 2, 3, 0, 1, 2]
    for n, time in enumerate(times):
        signal = ddim.alphas_cumprod[time]
        clean = signal.sqrt() * before[n] - (1 - signal).sqrt() * velocity[n]
        torch.testing.assert_close(estimate[n], clean)
        if n == 3:
            continue  # finished
        following = own.timesteps[own.done[n]]
        # diffusers' step goes down by a fixed number of timesteps
        ddim.num_inference_steps = 1
        ddim.config.num_train_timesteps = int(time - following)
        expected = ddim.step(velocity[n], time, before[n]).prev_sample
        torch.testing.assert_close(own.latents[n], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(own.asked[n], asked[n])
    assert abs(own.latents[3].std() - 1) < 0.15  # from noise alone


@pytest.mark.parametrize("mixed", [0.0, 0.5, 1.0])
def test_mixtures_have_the_spread_of_drawings(mixed: float) -> None:
    examples = shown_everywhere(500, side=4)
    own = OwnDrawings(examples, pool=4000, steps=1, seed=0, mixed=mixed)
    own.advance(torch.zeros_like(own.latents), torch.Generator().manual_seed(1))
    torch.testing.assert_close(own.asked.mean(0), examples.standard.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(own.asked.std(0), examples.standard.std(0), atol=0.1, rtol=0)
    apart = torch.cdist(
        own.asked, examples.standard, compute_mode="donot_use_mm_for_euclid_dist"
    ).min(1)
    of_drawings = apart.values < 1e-6
    assert of_drawings.float().mean().item() == pytest.approx(1 - mixed, abs=0.03)


class LinearDenoiser(nn.Module):
    """The least that a denoiser can be."""

    def __init__(self, numbers: int, labels: int) -> None:
        super().__init__()
        self.map = nn.Linear(numbers + labels, numbers)

    def forward(
        self, noised: Tensor, times: Tensor, encoder_hidden_states: Tensor, class_labels: Tensor
    ) -> SimpleNamespace:
        velocity = self.map(torch.cat([noised.flatten(1), class_labels], dim=1))
        return SimpleNamespace(sample=velocity.view_as(noised))


def test_refinement_makes_drawings_show_what_was_asked(tmp_path: Path) -> None:
    examples = shown_everywhere(64, side=8)
    places = torch.linalg.pinv(examples.standard) @ examples.latents.flatten(1)
    back = torch.linalg.pinv(places)

    def read(latents: Tensor) -> Tensor:
        return latents.flatten(1) @ back

    reader: Any = read
    torch.manual_seed(0)
    denoiser: Any = LinearDenoiser(places.shape[1], 8)

    def unlike(weight: float) -> float:
        recipe = RefinementTraining(
            steps=300, batch=8, own=8, own_steps=4, learning_rate=3e-3, reading_weight=weight
        )
        training = dataclasses.replace(TINY, refinement=recipe)
        out = tmp_path / str(weight)
        out.mkdir()
        refined = refine_denoiser(deepcopy(denoiser), examples, reader, out, training, "cpu")
        own = OwnDrawings(examples, pool=64, steps=4, seed=5)
        generator = torch.Generator().manual_seed(6)
        apart = []
        for _ in range(8):
            with torch.no_grad():
                velocity = predicted(refined, own.batch(), "cpu")
            last = own.done == 3
            found = read(own.estimate(velocity)[last])
            apart.append((found - own.asked[last]).square().mean())
            own.advance(velocity, generator)
        return float(torch.stack(apart).mean())

    assert unlike(5.0) < 0.8 * unlike(0.0)


def test_drawings_are_drawn_anew_with_their_captions() -> None:
    source = FewPairs("train")
    drawn = draw_images(source, draws=3, seed=0)
    assert drawn.pixels.shape == (36, 64, 64, 3) and len(drawn.captions) == 36
    assert not torch.equal(drawn.pixels[0], drawn.pixels[1])
    assert source.rows[0]["text"] in " ".join(drawn.captions[:3])


def test_the_perceptual_distance_is_the_towers_and_teaches_the_picture(encoder: Encoder) -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = x.flip(3).requires_grad_(True)
    assert perceptual_distance(encoder, x, x).item() == 0
    distance = perceptual_distance(encoder, other, x)
    distance.backward()
    assert other.grad is not None and other.grad.abs().max() > 0

    tower = encoder.model.visual
    expected = 0.0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    with torch.no_grad():
        a, b = (tower.stem(((image + 1) / 2 - mean) / std) for image in (other, x))
        for stage in (tower.layer1, tower.layer2, tower.layer3, None):
            for n, i, j in np.ndindex(a.shape[0], *a.shape[2:]):
                p, q = a[n, :, i, j], b[n, :, i, j]
                apart = (p / p.norm() - q / q.norm()).square().sum().item()
                expected += apart / (a.shape[0] * a.shape[2] * a.shape[3])
            if stage is not None:
                a, b = stage(a), stage(b)
    assert distance.item() == pytest.approx(expected, rel=1e-3)


def test_people_are_told_apart_from_things() -> None:
    source = EmbeddedPairs("train")
    source.rows = [
        next(row for row in source.rows if row["gender"] == gender)
        for gender in ("woman", None, "unspecified")
    ]
    assert (
        draw_images(source, draws=2, seed=0).people.tolist()
        == [True] * 2 + [False] * 2 + [True] * 2
    )


def test_the_rate_is_constant_and_falls_to_zero_in_the_end() -> None:
    rates = [optimise.constant_then_falling(2.0, step, 10, 0.4) for step in range(11)]
    assert rates == pytest.approx([2.0] * 7 + [1.5, 1.0, 0.5, 0.0])
