"""The best of what an attack tries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mms_apps.robustness.distances import Norm, within
from mms_apps.robustness.losses import attack_scale, cross_entropy, margin

BATCH_STEP = 16


class Attempts(nn.Module):
    """Stands between an attack and a model, and keeps the best of what the attack tries.

    The attack sees the model's logits brought to one scale (`losses.attack_scale`).

    Attributes:
        best: within eps, of each image's highest margin.
        fooled: whether an image within eps fooled the model.
        history: mean cross-entropy, of the scaled logits, of each pass with gradients over at least
            one image.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Tensor,
        labels: Tensor,
        eps: float,
        norm: Norm,
        passed: Callable[[int], None],
    ) -> None:
        """
        Args:
            passed: called after each pass with their number.
        """
        super().__init__()
        self.model = model
        self.passed = passed
        self.passes = 0
        self.clean, self.labels, self.eps, self.norm = clean, labels, eps, norm
        self.best = clean.clone()
        self.margin = torch.full((len(clean),), -torch.inf, device=clean.device)
        self.history: list[float] = []
        with torch.no_grad():
            self.scale = attack_scale(model(clean), labels)
        self.eval()  # torchattacks puts the model back into the mode of what it attacks

    @property
    def fooled(self) -> Tensor:
        return self.margin > 0

    def forward(self, images: Tensor) -> Tensor:
        logits = self._logits(images)
        self.passes += 1
        self.passed(self.passes)
        if len(images) == len(self.clean):  # all of them, in their order
            self.note(images.detach(), logits.detach())
            if torch.is_grad_enabled():
                self.history.append(float(cross_entropy(logits.detach(), self.labels).mean()))
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        """Scaled logits `[n, classes]`, of a few batch sizes only: oneDNN keeps a kernel and its
        memory for every size, and Square's and FAB's batches shrink image by image."""
        missing = -len(images) % BATCH_STEP if len(images) != len(self.clean) else 0
        if not missing:
            return self.scale * self.model(images)
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        return self.scale * self.model(filled)[: len(images)]

    def note(self, images: Tensor, logits: Tensor) -> None:
        """Keep images that are better than the best so far, and within eps and [0, 1].

        Args:
            logits: scaled, `[n, classes]`.
        """
        values = margin(logits, self.labels)
        better = (values > self.margin).nonzero().squeeze(1)
        candidates = images[better]
        valid = within(self.clean[better], candidates, self.eps, self.norm)
        flat = candidates.flatten(1)
        valid &= (flat >= 0).all(1) & (flat <= 1).all(1)
        better = better[valid]
        self.best[better], self.margin[better] = images[better], values[better]
