"""From a prompt's embedding to image embeddings that fit it.

The mean is linear in the text's embedding. What a prompt leaves open, the background for example,
is drawn from how images of one drawing differ among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from features.errors import UserError
from features.files import read_tensors, write_tensors

WEIGHTS = "prior.safetensors"


@dataclass(frozen=True)
class Prior:
    """A distribution of raw image embeddings given a text.

    weight: `[text dim, dim]`.
    bias: `[dim]`.
    deviations: of images from the mean image of their drawing, `[kept, dim]`.
    """

    weight: Tensor
    bias: Tensor
    deviations: Tensor

    def mean(self, text: Tensor) -> Tensor:
        """The expected raw image embeddings `[n, dim]` of unit text embeddings `[n, text dim]`."""
        return text.float() @ self.weight.to(text.device) + self.bias.to(text.device)

    def sample(self, text: Tensor, generator: torch.Generator) -> Tensor:
        """One raw image embedding a text: `[n, dim]`.

        Args:
            text: unit embeddings `[n, text dim]`.
            generator: on the CPU.
        """
        rows = torch.randint(len(self.deviations), (len(text),), generator=generator)
        return self.mean(text) + self.deviations[rows].to(text.device)

    def save(self, folder: Path) -> None:
        """Write `prior.safetensors` into a folder."""
        write_tensors(folder / WEIGHTS, {name: value.half() for name, value in vars(self).items()})

    @classmethod
    def load(cls, folder: Path) -> Prior:
        """Read what `save` wrote.

        Raises:
            UserError: it is missing or damaged.
        """
        path = folder / WEIGHTS
        try:
            return cls(**{name: value.float() for name, value in read_tensors(path).items()})
        except (UserError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read as a prior; train the generator again"
            ) from error
