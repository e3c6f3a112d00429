"""What the image encoder reads in the picture that latents stand for, so that the denoiser can be
told how far what it draws is from what it was asked to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from features.encoders.encoder import Encoder

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
        self.vae, self.model, self.normaliser = vae, encoder.model, normaliser
        self.preprocessing = encoder.preprocessing
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        """As the class says."""
        from torchvision.transforms.functional import normalize

        pictures = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        pixels = ((pictures + 1) / 2).clamp(0, 1)  # [n, 3, height, width]
        ready = normalize(pixels, self.preprocessing.mean, self.preprocessing.std)
        embeddings: Tensor = self.model.encode_image(ready)  # type: ignore[operator]
        mean, std = self.normaliser.mean, self.normaliser.std  # stay where labels are made
        return (embeddings - mean.to(latents.device)) / std.to(latents.device)
