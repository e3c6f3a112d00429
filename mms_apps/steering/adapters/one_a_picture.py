"""Embeddings for an IP-Adapter that stay apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from features.errors import UserError


class OneAPicture(Tensor):
    """Embeddings `[n, 1, dim]` of which each picture gets its own, behind as many negative ones
    `[2 n, 1, dim]` or without them.

    Diffusers splits what it is given into negative and other embeddings where the call is guided,
    and repeats all of them for each picture; its attention then mixes them (its issue 9813). Both
    are answered here and not in a pipeline, since the embeddings go into copies of it too: those
    that are split fall into the right halves, those that are not leave the negative ones out, and
    an embedding is repeated as often as there are pictures of it.
    """

    count: int
    """How many embeddings there are, the negative ones apart."""

    @staticmethod
    def of(positive: Tensor, negative: Tensor | None = None) -> OneAPicture:
        """Embeddings `[n, 1, dim]` and the negative ones `[n, 1, dim]`."""
        rows = positive if negative is None else torch.cat([negative, positive])
        return _counted(rows, len(positive))

    def halves(self) -> list[Tensor]:
        """The negative embeddings, zeros where there are none, and the others."""
        positive, negative = self[-self.count :], self[: -self.count]
        negative = negative if len(negative) else torch.zeros_like(positive)
        return [_counted(rows, self.count) for rows in (negative, positive)]

    def for_pictures(self, pictures: int) -> Tensor:
        """The embeddings of so many pictures `[pictures, 1, dim]`.

        Raises:
            UserError: they can't be shared out.
        """
        if pictures % self.count:
            raise UserError(
                f"{self.count} embeddings for {pictures} pictures; give a prompt for each embedding"
            )
        return self[-self.count :].repeat_interleave(pictures // self.count, 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, given: tuple = (), named: dict[str, Any] | None = None
    ) -> Any:
        first = given[0] if given else None
        with torch._C.DisableTorchFunctionSubclass():
            if function is Tensor.chunk and given[1:] == (2,):
                return given[0].halves()
            if function is torch.cat and first and all(rows is first[0] for rows in first):
                return first[0].for_pictures(len(first))
            found = function(*given, **named or {})
            if isinstance(found, Tensor) and isinstance(first, cls) and found.shape == first.shape:
                return _counted(found, first.count)  # on another device or in another dtype
        return found


torch.serialization.add_safe_globals([OneAPicture])
"""So that torch.load reads what torch.save made of a pipeline's inputs."""


def _counted(rows: Tensor, count: int) -> OneAPicture:
    found = rows.as_subclass(OneAPicture)
    found.count = count
    return found
