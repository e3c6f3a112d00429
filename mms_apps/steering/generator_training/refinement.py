"""The denoiser taught by what its own drawings show.

A denoiser learns from real drawings under noise, which tell much of what they show; when it draws,
it has what it made itself, mistakes and all. Here it draws, and the image encoder tells how far
what it is about to draw is from what it was asked for.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from features.distributed import mixed_precision
from mms_apps.steering.generator_training.examples import Examples, joined, predicted
from mms_apps.steering.generator_training.optimise import (
    constant_then_falling,
    optimise_average,
    step_generator,
)
from mms_apps.steering.generator_training.own_drawings import OwnDrawings
from mms_apps.steering.generator_training.picture_reader import PictureReader
from mms_apps.steering.generator_training.settings import GeneratorTraining

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def refine_denoiser(
    unet: UNet2DConditionModel,
    examples: Examples,
    reader: PictureReader,
    checkpoints: Path,
    training: GeneratorTraining,
    device: str,
) -> UNet2DConditionModel:
    """The denoiser trained on (its averaged weights); `unet` is changed in place."""
    recipe = training.refinement
    own = OwnDrawings(examples, recipe.own, recipe.own_steps, training.seed, recipe.mixed)

    def loss(step: int) -> Tensor:
        generator = step_generator(training.seed, step)
        batch, velocity = examples.batch(training.denoiser, recipe.batch, generator)
        with mixed_precision(device):
            found = predicted(unet, joined(batch, own.batch()), device)
            with torch.no_grad():
                free = predicted(unet, own.batch(told=False), device).float()
        real, told = found.float().split([recipe.batch, recipe.own])
        own_velocity = free + recipe.guidance * (told - free)
        estimate = own.estimate(own_velocity)  # [own, channels, h, w]
        with mixed_precision(device):
            read = reader(estimate)  # [own, dim]
        apart = (read.float() - own.asked.to(device)).square().mean(1)
        # Of what is mostly noise, not much can be read.
        reading = (own.signal.flatten().to(device) * apart).mean()
        own.advance(own_velocity.detach(), generator)
        unlike = (real - velocity.to(device)).square().mean()
        return unlike + recipe.reading_weight * reading

    refined = optimise_average(
        unet,
        loss,
        checkpoints / "refined.safetensors",
        recipe.steps,
        lambda step: constant_then_falling(recipe.learning_rate, step, recipe.steps, fall=1.0),
        json.dumps(dataclasses.asdict(replace(training, refinement=replace(recipe, steps=0)))),
        recipe.average_decay,
        own=own,
    )
    return refined.eval()
