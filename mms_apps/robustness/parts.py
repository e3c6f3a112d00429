"""One attack at one eps, kept as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from features.files import read_tensors, write_tensors


@dataclass(frozen=True)
class Part:
    """One attack at one eps."""

    withstood: Tensor
    """Whether each image is still classified right: `[n]` bool."""
    rounded: Tensor
    """The same with the adversarial image rounded to 8 bits."""
    excess: float
    """By how much eps or [0, 1] was left (`of_curves.bounds_excess`)."""
    lost: int
    """Images that were fooled on the way but not in what the attack returned."""
    history: list[float]
    shown: Tensor
    """The first adversarial images, `[examples, 3, height, width]`."""
    embedding: Tensor
    """Of the adversarial images, before any edit: `[n, dim]`; empty where the model has none."""

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, whole or not at all."""
        tensors = {
            "withstood": self.withstood.to(torch.uint8),
            "rounded": self.rounded.to(torch.uint8),
            "excess": torch.tensor(self.excess),
            "lost": torch.tensor(self.lost),
            "history": torch.tensor(self.history),
            "shown": self.shown,
            "embedding": self.embedding,
        }
        write_tensors(path, tensors)

    @classmethod
    def load(cls, path: Path) -> Part:
        """Read what `save` wrote.

        Raises:
            UserError: it is damaged.
        """
        tensors = read_tensors(path)
        return cls(
            withstood=tensors["withstood"].bool(),
            rounded=tensors["rounded"].bool(),
            excess=float(tensors["excess"]),
            lost=int(tensors["lost"]),
            history=tensors["history"].tolist(),
            shown=tensors["shown"],
            embedding=tensors["embedding"],
        )


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    write_tensors(
        path, {k: (v.to(torch.uint8) if v.dtype == torch.bool else v) for k, v in tensors.items()}
    )


def slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)
