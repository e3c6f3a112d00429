"""Windows over a picture: which of its pixels, or of a map's places, each cell of a grid is about.

Cell (r, c) of a grid is about the window around it. Windows overlap, and are cut at the picture's
edges: a single cell of a fine grid is so small that hardly any feature notices when it is covered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 16
"""Cells a side."""
WINDOW = 5 / 16
"""Side of the window around each cell's centre, over the picture's; chosen on training pairs of the
emoji, as GRID was."""


@dataclass(frozen=True)
class Windows:
    """A grid of `grid` by `grid` cells with a window around each cell's centre.

    side: of a window over the picture's, in (0, 1]; a cell's side where that is more.
    """

    grid: int = GRID
    side: float = WINDOW

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"grid {self.grid}: at least 1 cell a side")
        if not 0 < self.side <= 1:
            raise ValueError(f"window {self.side}: above 0, and at most 1, the picture's side")

    @property
    def bounds(self) -> Tensor:
        """Where each row's (or column's) windows begin and end, in [0, 1]: `[grid, 2]` float64."""
        centres = (torch.arange(self.grid, dtype=torch.float64) + 0.5) / self.grid
        half = max(self.side, 1 / self.grid) / 2
        return torch.stack([centres - half, centres + half], 1).clamp(0, 1)

    def covered(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Which places each window covers: bool `[grid * grid, ...]`, window by window from the
        upper left along the rows.

        Args:
            rows: of each place its position from the top, in (0, 1); NaN for places that belong to
                no part of the picture.
            columns: from the left; the two are broadcast against each other.
        """
        low, high = self.bounds.to(rows).unbind(1)
        ones = (1,) * torch.broadcast_tensors(rows, columns)[0].ndim
        low, high = low.view(-1, *ones), high.view(-1, *ones)
        within_rows = (rows >= low) & (rows < high)  # [grid, ...]
        within_columns = (columns >= low) & (columns < high)  # [grid, ...]
        return (within_rows[:, None] & within_columns[None]).flatten(0, 1)

    def sums(self, contributions: Tensor) -> Tensor:
        """What the windows hold of a map that is spread evenly over the picture, places counted by
        their share within a window: `[..., height, width]` -> `[..., grid, grid]`."""
        over_rows, over_columns = (
            self._shares(size).to(contributions) for size in contributions.shape[-2:]
        )
        return over_rows @ contributions @ over_columns.T

    def _shares(self, size: int) -> Tensor:
        """Of each of `size` places the share that lies within each window: `[grid, size]`."""
        begins = torch.arange(size, dtype=torch.float64) / size
        low, high = self.bounds.split(1, dim=1)  # [grid, 1] each
        common = torch.minimum(high, begins + 1 / size) - torch.maximum(low, begins)
        return common.clamp(min=0) * size
