"""Training a small image generator on the embedded world: a `StableUnCLIPImg2ImgPipeline` folder.

First the autoencoder, then its decoder alone, then the denoiser on the latents, conditioned on an
open_clip image embedding (noised as the pipeline does) and on the prompt. Each is left out at
times: both, for guidance; the prompt, so that a reference alone works; the embedding, drowned in
noise, so that a prompt alone works (`noise_level` of PROMPT_ALONE).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from features.checkpoint import load_checkpoint, save_checkpoint
from features.embedded import ENCODERS
from features.embedded.world import EmbeddedPairs, PlantedFactors, caption, render
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.files import write_json
from mms_apps.steering.prior import Prior, fit_prior

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel

PROMPT_ALONE = 999
"""The noise level at which nothing is left of the image embedding."""
TRAIN_TIMESTEPS = 1000
CHECKPOINT_STEPS = 250
SHOW_EVERY = 100
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderTraining:
    """Adam under a cosine, on images drawn afresh at every step.

    Attributes:
        edge_weight: of the L1 distance of neighbouring pixels' differences.
        kl_weight: of the latents' KL divergence, summed over an image; above 1e-6 it blurs.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 12
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 1.5e-3
    edge_weight: float = 1.0
    kl_weight: float = 1e-6


@dataclass(frozen=True)
class DecoderTraining:
    """The decoder further, the encoder as it is: Adam under a cosine."""

    steps: int = 4000
    batch: int = 16
    learning_rate: float = 1.5e-3


@dataclass(frozen=True)
class DenoiserTraining:
    """Adam at a constant rate; the weights' moving average is what generates.

    Noisy timesteps come up more often, in proportion to the timestep: there the embedding decides
    what is drawn.

    Attributes:
        steps: can be raised later; a training that was cut off or kept goes on.
        draws: of each drawing's planted factors.
        drop_both: share of examples without embedding and prompt.
        drop_prompt: share of the prompts left out.
        drop_image: share of embeddings drowned in noise.
        noisy_image: share of embeddings under some noise.
    """

    channels: tuple[int, ...] = (64, 96, 128)
    time_channels: int = 320
    layers: int = 1
    heads: int = 4
    steps: int = 14_250
    batch: int = 64
    learning_rate: float = 6e-4
    average_decay: float = 0.999
    draws: int = 8
    drop_both: float = 0.1
    drop_prompt: float = 0.5
    drop_image: float = 0.1
    noisy_image: float = 0.1


@dataclass(frozen=True)
class GeneratorTraining:
    """What the generator is made of and how it is trained.

    Attributes:
        encoder: the embedded encoder whose image embeddings condition it.
        prior_draws: of each drawing's planted factors, for the prior.
    """

    encoder: str = "embedded-ssl"
    autoencoder: AutoencoderTraining = AutoencoderTraining()
    decoder: DecoderTraining = DecoderTraining()
    denoiser: DenoiserTraining = DenoiserTraining()
    prior_draws: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Drawn:
    """The training images, one row each.

    pixels: uint8 `[n, 64, 64, 3]`.
    captions: n prompts.
    """

    pixels: Tensor
    captions: list[str]


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
    encoder = load_encoder(training.encoder, device=device)
    source = EmbeddedPairs("train")
    drawings = [source.drawing(index) for index in range(len(source.rows))]
    vae = train_autoencoder(source, drawings, checkpoints, training, device)
    refine_decoder(vae, drawings, checkpoints, training, device)
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


def train_prior(source: EmbeddedPairs, encoder: Encoder, training: GeneratorTraining) -> Prior:
    """The prior of the drawings' captions and images, under draws of their own."""
    drawn = draw_images(source, training.prior_draws, training.seed + 1)
    texts = torch.cat(
        [
            encoder.encode_texts(drawn.captions[start : start + 256])
            for start in range(0, len(drawn.captions), 256)
        ]
    ).clone()
    shape = (len(source.rows), training.prior_draws, -1)
    generator = torch.Generator().manual_seed(training.seed)
    images = raw_embeddings(encoder, drawn.pixels)
    return fit_prior(texts.cpu().view(shape), images.view(shape), generator)


def draw_images(source: EmbeddedPairs, draws: int, seed: int) -> Drawn:
    """Each drawing under several draws of its planted factors; half of the captions are in a
    register, the others are the bare names."""
    rng = random.Random(seed)
    pixels, captions = [], []
    for index, row in enumerate(source.rows):
        drawing = source.drawing(index)
        for _ in range(draws):
            factors = PlantedFactors.draw(rng)
            pixels.append(np.asarray(render(drawing, factors)))
            captions.append(caption(row["text"], factors) if rng.random() < 0.5 else row["text"])
    return Drawn(torch.from_numpy(np.stack(pixels)), captions)


def scaled(pixels: Tensor) -> Tensor:
    """uint8 `[n, h, w, 3]` -> `[n, 3, h, w]` in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(
    source: EmbeddedPairs,
    drawings: Sequence[Image.Image],
    checkpoints: Path,
    training: GeneratorTraining,
    device: str,
) -> AutoencoderKL:
    """An autoencoder of 64-pixel images, its latents scaled to unit variance."""
    from diffusers import AutoencoderKL

    torch.manual_seed(training.seed)
    recipe = training.autoencoder
    blocks = len(recipe.channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=8,
        sample_size=64,
    ).to(device)
    vae.to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        x = random_pictures(drawings, f"{training.seed}/vae/{step}", recipe.batch).to(device)
        generator = torch.Generator(device).manual_seed(step)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            again = vae.decode(posterior.sample(generator)).sample
        kl = posterior.kl().mean()
        return unlikeness(again.float(), x, recipe.edge_weight) + recipe.kl_weight * kl

    optimise(
        {"vae": vae},
        loss,
        checkpoints / "vae.safetensors",
        recipe.steps,
        lambda step: cosine(recipe.learning_rate, step, recipe.steps),
        json.dumps([dataclasses.asdict(recipe), training.seed, source.fingerprint()]),
    )
    vae.eval().requires_grad_(False)
    latents = encode_latents(vae, draw_images(source, 1, training.seed).pixels, device)
    vae.register_to_config(scaling_factor=float(1 / latents.float().std()))
    return vae


def refine_decoder(
    vae: AutoencoderKL,
    drawings: Sequence[Image.Image],
    checkpoints: Path,
    training: GeneratorTraining,
    device: str,
) -> None:
    """Train the decoder on, in place."""
    recipe = training.decoder
    parts = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)

    def loss(step: int) -> Tensor:
        x = random_pictures(drawings, f"{training.seed}/decoder/{step}", recipe.batch).to(device)
        generator = torch.Generator(device).manual_seed(step)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.sample(generator)
            again = vae.decode(latents).sample
        return unlikeness(again.float(), x, training.autoencoder.edge_weight)

    optimise(
        {"decoder": parts},
        loss,
        checkpoints / "decoder.safetensors",
        recipe.steps,
        lambda step: cosine(recipe.learning_rate, step, recipe.steps),
        json.dumps(
            [dataclasses.asdict(recipe), dataclasses.asdict(training.autoencoder), training.seed]
        ),
    )
    vae.eval().requires_grad_(False)


def random_pictures(drawings: Sequence[Image.Image], key: str, batch: int) -> Tensor:
    """Drawings under random planted factors, the same ones for the same key:
    `[batch, 3, 64, 64]` in [-1, 1]."""
    rng = random.Random(key)
    pictures = [
        np.asarray(render(rng.choice(drawings), PlantedFactors.draw(rng))) for _ in range(batch)
    ]
    return scaled(torch.from_numpy(np.stack(pictures)))


def unlikeness(again: Tensor, x: Tensor, edge_weight: float) -> Tensor:
    """L1 distance of images `[n, 3, h, w]`, and of their neighbouring pixels' differences."""
    difference = again - x
    edges = sum(difference.diff(dim=axis).abs().mean() for axis in (2, 3))
    return difference.abs().mean() + edge_weight * edges


def cosine(learning_rate: float, step: int, steps: int) -> float:
    """A learning rate that falls to zero."""
    return learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))


def optimise(
    modules: dict[str, nn.Module],
    loss: Callable[[int], Tensor],
    checkpoint: Path,
    steps: int,
    learning_rate: Callable[[int], float],
    settings: str,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Adam on the first module, its learning rate warmed up, checkpointed."""
    model = next(iter(modules.values()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate(0), weight_decay=0.01)
    first = load_checkpoint(checkpoint, modules, optimizer, settings)
    model.train()
    running = 0.0
    for step in range(first, steps):
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = warm * learning_rate(step)
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after_step()
        running += float(value.detach())
        if (step + 1) % SHOW_EVERY == 0:
            log.info("%s step %d, loss %.4f", checkpoint.stem, step + 1, running / SHOW_EVERY)
            running = 0.0
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, modules, optimizer, step + 1, settings)


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pixels: Tensor, device: str) -> Tensor:
    """Mean latents of uint8 images `[n, 64, 64, 3]`: fp16 `[n, channels, 16, 16]`, unscaled."""
    found = [
        vae.encode(scaled(batch).to(device)).latent_dist.mean.half().cpu()
        for batch in pixels.split(256)
    ]
    return torch.cat(found)


@torch.no_grad()
def raw_embeddings(encoder: Encoder, pixels: Tensor) -> Tensor:
    """The encoder's image embeddings as they leave the model, not normalised: `[n, dim]`."""
    found = []
    for batch in pixels.split(256):
        ready = encoder.preprocessing.normalise(batch.to(encoder.device))
        found.append(encoder.model.encode_image(ready).float().cpu())  # type: ignore[operator]
    return torch.cat(found)


@torch.no_grad()
def text_states(
    text_encoder: nn.Module, tokenizer: Any, captions: list[str]
) -> tuple[Tensor, Tensor]:
    """The text encoder's last hidden states of the empty prompt and of each distinct caption:
    fp16 `[distinct, tokens, width]`, and each caption's place there, `[n]`."""
    distinct = {text: place for place, text in enumerate(dict.fromkeys(["", *captions]))}
    texts = list(distinct)
    device = next(text_encoder.parameters()).device
    found = []
    for start in range(0, len(texts), 256):
        ids = tokenizer(
            texts[start : start + 256],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        found.append(text_encoder(ids.to(device)).last_hidden_state.half().cpu())
    return torch.cat(found), torch.tensor([distinct[text] for text in captions])


def train_denoiser(
    drawn: Drawn,
    vae: AutoencoderKL,
    encoder: Encoder,
    checkpoints: Path,
    training: GeneratorTraining,
    device: str,
) -> tuple[UNet2DConditionModel, nn.Module, nn.Module, Any]:
    """The denoiser (its averaged weights), and the normaliser, text encoder and tokenizer that
    went with it."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.models.embeddings import get_timestep_embedding
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from transformers import CLIPTokenizer

    from mms_apps.steering.text_encoder import clip_text_model

    recipe = training.denoiser
    folder = ENCODERS / training.encoder
    text_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=text_cfg["context_length"])
    text_encoder = clip_text_model(encoder.model, text_cfg).to(device).requires_grad_(False)
    embeddings = raw_embeddings(encoder, drawn.pixels)
    dim = embeddings.shape[1]
    normaliser = StableUnCLIPImageNormalizer(embedding_dim=dim).requires_grad_(False)
    normaliser.mean.copy_(embeddings.mean(0, keepdim=True))
    normaliser.std.copy_(embeddings.std(0, keepdim=True))
    standard = normaliser.scale(embeddings)  # [n, dim]
    latents = encode_latents(vae, drawn.pixels, device)
    scale = vae.config.scaling_factor
    states, of_row = text_states(text_encoder, tokenizer, drawn.captions)

    torch.manual_seed(training.seed)
    levels = len(recipe.channels)
    unet = UNet2DConditionModel(
        sample_size=latents.shape[-1],
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        block_out_channels=recipe.channels,
        layers_per_block=recipe.layers,
        down_block_types=(*["DownBlock2D"] * (levels - 1), "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", *["UpBlock2D"] * (levels - 1)),
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=recipe.time_channels,
        cross_attention_dim=text_cfg["width"],
        attention_head_dim=recipe.heads,
        norm_num_groups=16,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * dim,
    ).to(device)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay))
    schedule = DDPMScheduler(**noise_schedule())
    embedding_schedule = DDPMScheduler(**embedding_noise())

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        n = recipe.batch
        rows = torch.randint(len(latents), (n,), generator=generator)
        x = latents[rows].float() * scale
        noise = torch.randn(x.shape, generator=generator)
        times = (TRAIN_TIMESTEPS * torch.rand(n, generator=generator).sqrt()).long()
        chance = torch.rand(3, n, generator=generator)
        level = torch.zeros(n, dtype=torch.long)
        noisy = chance[0] < recipe.noisy_image
        level[noisy] = torch.randint(TRAIN_TIMESTEPS, (int(noisy.sum()),), generator=generator)
        level[chance[0] > 1 - recipe.drop_image] = PROMPT_ALONE
        embedding_noise_ = torch.randn(n, dim, generator=generator)
        seen = embedding_schedule.add_noise(standard[rows], embedding_noise_, level)
        labels = torch.cat(
            [
                normaliser.unscale(seen),
                get_timestep_embedding(level, dim, flip_sin_to_cos=True, downscale_freq_shift=0),
            ],
            dim=1,
        )  # [n, 2 * dim]
        both = chance[2] < recipe.drop_both
        labels[both] = 0
        which = of_row[rows].clone()
        which[both | (chance[1] < recipe.drop_prompt)] = 0
        noised = schedule.add_noise(x, noise, times)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            predicted = unet(
                noised.to(device),
                times.to(device),
                encoder_hidden_states=states[which].float().to(device),
                class_labels=labels.to(device),
            ).sample
        target = schedule.get_velocity(x, noise, times).to(device)
        return (predicted.float() - target).square().mean()

    optimise(
        {"unet": unet, "average": average},
        loss,
        checkpoints / "unet.safetensors",
        recipe.steps,
        lambda step: recipe.learning_rate,
        json.dumps(
            [
                dataclasses.asdict(replace(recipe, steps=0)),
                dataclasses.asdict(training.autoencoder),
                training.encoder,
                training.seed,
            ]
        ),
        after_step=lambda: average.update_parameters(unet),
    )
    return average.module.eval(), normaliser, text_encoder, tokenizer


def noise_schedule() -> dict[str, Any]:
    """Settings of the denoiser's schedule."""
    return {
        "num_train_timesteps": TRAIN_TIMESTEPS,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    }


def embedding_noise() -> dict[str, Any]:
    """Settings of the schedule that noises image embeddings."""
    return {"num_train_timesteps": TRAIN_TIMESTEPS, "beta_schedule": "squaredcos_cap_v2"}


def assemble(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    normaliser: nn.Module,
    text_encoder: nn.Module,
    tokenizer: Any,
    encoder: Encoder,
) -> StableUnCLIPImg2ImgPipeline:
    """The pipeline of trained parts, with a fast scheduler."""
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableUnCLIPImg2ImgPipeline
    from transformers import CLIPImageProcessor

    from mms_apps.steering.image_encoder import OpenClipVisionConfig, OpenClipVisionModel

    folder = ENCODERS / encoder.id
    config = json.loads((folder / "open_clip_config.json").read_text())
    model_cfg, preprocess_cfg = config["model_cfg"], config["preprocess_cfg"]
    vision = OpenClipVisionModel(
        OpenClipVisionConfig(model_cfg["embed_dim"], model_cfg["vision_cfg"])
    )
    vision.visual.load_state_dict(encoder.model.visual.state_dict())  # type: ignore[union-attr]
    size = model_cfg["vision_cfg"]["image_size"]
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=preprocess_cfg["mean"],
            image_std=preprocess_cfg["std"],
        ),
        image_encoder=vision.eval(),
        image_normalizer=normaliser,
        image_noising_scheduler=DDPMScheduler(**embedding_noise()),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(**noise_schedule()),
        vae=vae,
    )
