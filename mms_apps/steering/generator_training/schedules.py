"""The noise of latents and of image embeddings."""

from __future__ import annotations

from typing import Any

PROMPT_ALONE = 999
"""The noise level at which nothing is left of the image embedding."""
TRAIN_TIMESTEPS = 1000


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
