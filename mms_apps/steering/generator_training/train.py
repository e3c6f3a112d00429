"""All parts of a generator, one after another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from features.distributed import resolve_device
from features.embedded.world import EmbeddedPairs
from features.encoders.load import load_encoder
from features.files import write_json
from mms_apps.steering.generator_training.assemble import assemble
from mms_apps.steering.generator_training.autoencoder import refine_decoder, train_autoencoder
from mms_apps.steering.generator_training.denoiser import train_denoiser
from mms_apps.steering.generator_training.drawings import draw_images
from mms_apps.steering.generator_training.prior import train_prior
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
        UserError: `out` holds checkpoints of a training with other settings.
    """
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    device = str(resolve_device(device))
    encoder = load_encoder(training.encoder, device=device)
    source = EmbeddedPairs("train")
    drawings = [source.drawing(index) for index in range(len(source.rows))]
    vae = train_autoencoder(source, drawings, checkpoints, training, device)
    refine_decoder(vae, drawings, encoder, checkpoints, training, device)
    drawn = draw_images(source, training.denoiser.draws, training.seed)
    unet, normaliser, text_encoder, tokenizer = train_denoiser(
        drawn, vae, encoder, checkpoints, training, device
    )
    pipeline = assemble(vae, unet, normaliser, text_encoder, tokenizer, encoder)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out)
    prior = train_prior(source, encoder, training)
    prior.save(out)
    write_json(
        out / "training.json",
        {**dataclasses.asdict(training), "pairs_fingerprint": source.fingerprint()},
    )
    return pipeline
