"""What the image encoder reads in the picture that latents stand for, so that the denoiser can be
told how far what it draws is from what it was asked to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from features.encoders.encoder import Encoder
from mms_apps.steering.generator_training.conditions import as_seen

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class PictureReader(nn.Module):
    """Latents `[n, channels, h, w]` of unit variance -> standardised embeddings `[n, dim]` of their
    pictures, through which gradients flow; nothing of it is trained.

    Args:
        vae: decodes the latents.
        normaliser: the pipeline's, which standardises embeddings.
    """

    def __init__(self, vae: AutoencoderKL, encoder: Encoder, normaliser: Any) -> None:
        super().__init__()
        self.vae, self.encoder, self.normaliser = vae, encoder, normaliser
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        """As the class says."""
        pictures = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        ready = as_seen(self.encoder, pictures.clamp(-1, 1))  # [n, 3, height, width]
        embeddings: Tensor = self.encoder.model.encode_image(ready)  # type: ignore[operator]
        mean, std = self.normaliser.mean, self.normaliser.std  # stay where labels are made
        return (embeddings - mean.to(latents.device)) / std.to(latents.device)
