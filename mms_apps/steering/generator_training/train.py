"""All parts of a generator, one after another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from features.distributed import resolve_device
from features.embedded import GENERATOR
from features.embedded.world import EmbeddedPairs
from features.encoders.load import load_encoder
from features.errors import UserError
from features.files import write_json
from mms_apps.steering.generator_training.assemble import assemble
from mms_apps.steering.generator_training.autoencoder import refine_decoder, train_autoencoder
from mms_apps.steering.generator_training.denoiser import (
    conditions_and_examples,
    first_denoiser,
    train_denoiser,
)
from mms_apps.steering.generator_training.drawings import draw_images
from mms_apps.steering.generator_training.picture_reader import PictureReader
from mms_apps.steering.generator_training.prior import train_prior
from mms_apps.steering.generator_training.refinement import refine_denoiser
from mms_apps.steering.generator_training.settings import GeneratorTraining

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline


def train_generator(
    out: Path, training: GeneratorTraining, device: str = "cpu"
) -> StableUnCLIPImg2ImgPipeline:
    """Train a generator and save it to the folder `out`.

    It goes on from the last checkpoint in `out/checkpoints`, if a run was cut off or is to be
    longer.

    Raises:
        UserError: `out` holds checkpoints of a training with other settings, or there is no
            generator to start from.
    """
    from diffusers import AutoencoderKL

    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    device = str(resolve_device(device))
    encoder = load_encoder(training.encoder, device=device)
    source = EmbeddedPairs("train")
    drawings = [source.drawing(index) for index in range(len(source.rows))]
    start = _started_from(training.start)
    if start is None:
        vae = train_autoencoder(source, drawings, checkpoints, training, device)
        refine_decoder(vae, drawings, encoder, checkpoints, training, device)
    else:
        vae = AutoencoderKL.from_pretrained(start, subfolder="vae", torch_dtype=torch.float32)
        vae.to(device).eval().requires_grad_(False)
    drawn = draw_images(source, training.denoiser.draws, training.seed)
    conditions, examples = conditions_and_examples(drawn, vae, encoder, training, start, device)
    unet = first_denoiser(training, vae, examples, start, device)
    if start is None:
        unet = train_denoiser(unet, examples, checkpoints, training, device)
    if training.refinement.steps:
        reader = PictureReader(vae, encoder, conditions.normaliser)
        unet = refine_denoiser(unet, examples, reader, checkpoints, training, device)
    pipeline = assemble(vae, unet, conditions, encoder)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out)
    prior = train_prior(source, encoder, training)
    prior.save(out)
    write_json(
        out / "training.json",
        {**dataclasses.asdict(training), "pairs_fingerprint": source.fingerprint()},
    )
    return pipeline


def _started_from(start: str | None) -> Path | None:
    if start is None:
        return None
    folder = GENERATOR if start == "embedded" else Path(start)
    if not (folder / "unet").is_dir():
        raise UserError(
            f"{start}: no generator to start from; give embedded, or a folder that "
            "mms train-generator wrote"
        )
    return folder
