"""Evidence in pictures: by covering each part in turn, or by one gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from features.encoders.encoder import Encoder, pictures_of
from features.evidence.maps import inner_maps, watched
from features.evidence.targets import Scores, Source, Target, encoder_of, scores_of
from features.evidence.windows import GRID, WINDOW, Windows
from features.pairs.images import rgb

Method = Literal["exact", "fast"]
BATCH = 64
"""Pictures, or copies of one with a part covered, that go through the encoder at once."""
RAMP = 256
"""Longer side of the picture by which is found what a transform crops."""
NEAR_EDGE = 0.01
"""To which that is found; what ends so near to an edge ends there."""


@dataclass(frozen=True)
class PictureEvidence:
    """What parts of one picture add to some targets.

    cells: `[targets, grid, grid]` float32; positive where the target would fall without what the
        window around the cell shows, negative where it would rise, in the target's own unit.
    values: the targets of the whole picture, `[targets]` float32.
    seen: left, top, right and bottom of what the encoder sees of the picture, over its width and
        height; the cells divide that part. Beyond 0 and 1 where the encoder puts a margin around.
    """

    cells: Tensor
    values: Tensor
    seen: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def upsampled(self, size: tuple[int, int]) -> Tensor:
        """The cells drawn over the whole picture, bilinear, 0 where the encoder sees nothing:
        `[targets, height, width]`.

        Args:
            size: (width, height), as PIL has it.
        """
        left, top, right, bottom = self.seen
        width, height = size
        x = ((torch.arange(width) + 0.5) / width - left) / (right - left)  # [width], in the cells
        y = ((torch.arange(height) + 0.5) / height - top) / (bottom - top)  # [height]
        grid = torch.stack(torch.meshgrid(2 * x - 1, 2 * y - 1, indexing="xy"), -1)[None]
        drawn = F.grid_sample(
            self.cells[None], grid.float(), padding_mode="border", align_corners=False
        )[0]
        inside = ((x >= 0) & (x <= 1))[None] & ((y >= 0) & (y <= 1))[:, None]  # [height, width]
        return drawn * inside


@torch.inference_mode(mode=False)
def picture_evidence(
    source: Source,
    images: Sequence[Any] | Image.Image,
    target: Target,
    method: Method = "fast",
    *,
    grid: int = GRID,
    window: float = WINDOW,
    batch_size: int = BATCH,
) -> list[PictureEvidence]:
    """Which parts of pictures a feature, or any function of their embedding, rests on.

    Both methods ask by how much the target falls when a window of the picture is covered with the
    encoder's mean colour (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2):

    - `exact` covers each of `grid * grid` windows and encodes every copy.
    - `fast` takes the first-order term of the same difference, at inner maps of the image tower:
      gradient times what a map has beyond that of a wholly covered picture, summed over the
      window (gradient x activation; Ancona et al. 2018, arXiv 1711.06104). One pass forwards and
      one backwards for each target.

    Args:
        source: a FeatureSpace, or the encoder alone where `target` is a function.
        images: of any mode (`features.pairs.images.rgb`), or one alone.
        target: numbers of features of the FeatureSpace, whose evidence is that of their
            pre-activations, or a function of unit embeddings `[n, dim]` that gives `[n, targets]`.
            Several targets cost `exact` nothing more.
        grid: cells a side.
        window: side of the window around each cell's centre over the picture's, in (0, 1]; 1 / grid
            or less for cells that don't overlap.
        batch_size: pictures that go through the encoder at once.

    Returns:
        One PictureEvidence an image, on the CPU.

    Raises:
        UserError: there is no such feature, an image is too long and narrow, the FeatureSpace's
            encoder is not the one its features belong to, or `fast` finds no map in
            its tower.
        ValueError: an unknown method, a grid, window or batch that is none, or a target that does
            not give one row an embedding.
    """
    encoder = encoder_of(source)
    find = _finder(source, target, method, Windows(grid, window), batch_size)
    found: list[PictureEvidence] = []
    parts: dict[tuple[int, int], tuple[float, float, float, float]] = {}
    images = pictures_of(images)
    for start in range(0, len(images), batch_size):
        batch = [rgb(image) for image in images[start : start + batch_size]]
        pixels = encoder.preprocessing.pixels(batch).to(encoder.device)
        cells, values = find(encoder.preprocessing.normalise(pixels))
        for image, own_cells, own_values in zip(batch, cells, values, strict=True):
            if image.size not in parts:
                parts[image.size] = seen_part(encoder, image.size)
            found.append(PictureEvidence(own_cells, own_values, parts[image.size]))
    return found


@torch.inference_mode(mode=False)
def prepared_evidence(
    source: Source,
    pixels: Tensor,
    target: Target,
    method: Method = "fast",
    *,
    grid: int = GRID,
    window: float = WINDOW,
    batch_size: int = BATCH,
) -> list[PictureEvidence]:
    """As `picture_evidence`, of pictures that need not be, or must not be, prepared again.

    Args:
        pixels: as the encoder takes them, normalised, `[n, 3, height, width]`.
    """
    find = _finder(source, target, method, Windows(grid, window), batch_size)
    return [
        PictureEvidence(cells, values)
        for batch in pixels.split(batch_size)
        for cells, values in zip(*find(batch), strict=True)
    ]


def _finder(
    source: Source, target: Target, method: Method, windows: Windows, batch_size: int
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """What gives of a batch of preprocessed pictures cells `[n, targets, grid, grid]` and values
    `[n, targets]`."""
    if method not in ("exact", "fast"):
        raise ValueError(f"{method}: unknown method; use exact or fast")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: at least 1")
    encoder, scores = encoder_of(source), scores_of(source, target, "image")
    if method == "exact":
        return lambda pixels: _by_covering(encoder, pixels, scores, windows, batch_size)
    return lambda pixels: _by_gradient(encoder, pixels, scores, windows)


@torch.inference_mode()
def _by_covering(
    encoder: Encoder, pixels: Tensor, scores: Scores, windows: Windows, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Cells `[n, targets, grid, grid]` and values `[n, targets]` of preprocessed pictures."""
    values = scores(encoder.embed_image_tensors(pixels)).float().cpu()  # [n, targets]
    cells = []
    for picture, own in zip(pixels, values, strict=True):
        masks = windows.covered(*places(picture))  # [windows, ...], broadcast over channels
        without = [
            scores(encoder.embed_image_tensors(_channels_last(picture.masked_fill(part, 0))))
            for part in masks.split(batch_size)
        ]
        fall = own[:, None] - torch.cat(without).float().cpu().T  # [targets, windows]
        cells.append(fall.unflatten(1, (windows.grid, windows.grid)))
    return torch.stack(cells), values


def _by_gradient(
    encoder: Encoder, pixels: Tensor, scores: Scores, windows: Windows
) -> tuple[Tensor, Tensor]:
    """As `_by_covering`, to the first order."""
    maps = inner_maps(encoder, pixels[:1])
    with torch.enable_grad(), watched(encoder, maps) as activations:
        values = scores(encoder.embed_image_tensors(_channels_last(pixels)))  # [n, targets]
        gradients = [
            torch.autograd.grad(one.sum(), activations, retain_graph=True)
            for one in values.unbind(1)
        ]  # by target and map
    with torch.no_grad(), watched(encoder, maps) as nothing:
        alike = pixels.ndim == 4  # a covered picture is the same for all
        encoder.embed_image_tensors(_covered(pixels[:1] if alike else pixels))
    same_shape: list[tuple[slice, tuple[int, int]]] = (
        [(slice(None), (0, 0))]
        if alike
        else [(slice(n, n + 1), _patches(picture)) for n, picture in enumerate(pixels)]
    )
    cells = pixels.new_zeros(len(pixels), len(gradients), windows.grid, windows.grid).float()
    for place, found in enumerate(maps):
        beyond = (activations[place] - nothing[place]).detach().float()
        for column, gradient in enumerate(gradients):
            product = gradient[place].float() * beyond
            for rows, shape in same_shape:
                sums = windows.sums(found.places(product[rows], shape))
                cells[rows, column] += sums / len(maps)
    return cells.cpu(), values.detach().float().cpu()


def places(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Where the pixels of a preprocessed picture lie: rows and columns in (0, 1), to be broadcast
    against the picture. Of patches (`PatchTransform`), those of each patch's centre, and NaN for
    what is no patch."""
    if picture.ndim == 3:
        rows, columns = (
            (torch.arange(size, device=picture.device) + 0.5) / size for size in picture.shape[1:]
        )
        return rows[None, :, None], columns[None, None, :]
    height, width = _patches(picture)
    numbers = torch.arange(len(picture), device=picture.device)
    outside = numbers >= height * width
    row = ((numbers // width + 0.5) / height).masked_fill(outside, torch.nan)
    column = ((numbers % width + 0.5) / width).masked_fill(outside, torch.nan)
    return row[:, None], column[:, None]


def seen_part(encoder: Encoder, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what an encoder's transform keeps of a picture of a size
    (width, height), over its width and height.

    Found from what it makes of a picture that grows brighter to the right, and downwards.
    """
    scale = RAMP / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.rint(255 * (np.arange(width) + 0.5) / width)
    ramp[..., 1] = np.rint(255 * (np.arange(height) + 0.5) / height)[:, None]
    made, black, white = (
        encoder.preprocess(Image.fromarray(pixels)).double()
        for pixels in (ramp, np.zeros_like(ramp), np.full_like(ramp, 255))
    )
    if made.ndim != 3:  # patches of the whole picture
        return (0.0, 0.0, 1.0, 1.0)
    middle = made.shape[1] // 2, made.shape[2] // 2
    shown = ((made - black) / (white - black).clamp(min=1e-6)).numpy()  # [3, height, width]
    left, right = _ends(shown[0, middle[0]])
    top, bottom = _ends(shown[1, :, middle[1]])
    return left, top, right, bottom


def _ends(positions: np.ndarray) -> tuple[float, float]:
    """Where a line through positions `[n]` that were read from a ramp begins and ends."""
    rising = (np.gradient(positions) > 0) & (positions > 0.02) & (positions < 0.98)
    number = np.arange(len(positions))[rising]
    if len(number) < 2:
        return 0.0, 1.0
    slope, start = np.polyfit(number, positions[rising], 1)
    low, high = start - slope / 2, start + slope * (len(positions) - 0.5)
    return (
        0.0 if abs(low) < NEAR_EDGE else float(low),
        1.0 if abs(high - 1) < NEAR_EDGE else float(high),
    )


def _patches(picture: Tensor) -> tuple[int, int]:
    """Rows and columns of patches, as the last row of a `PatchTransform` says; none in pixels."""
    if picture.ndim == 3:
        return (0, 0)
    rows, columns = picture[-1, :2].long().tolist()
    return rows, columns


def _covered(pixels: Tensor) -> Tensor:
    """Pictures that show nothing: the encoder's mean colour everywhere."""
    if pixels.ndim == 4:
        return torch.zeros_like(pixels)
    return torch.cat([torch.zeros_like(pixels[:, :-1]), pixels[:, -1:]], 1)


def _channels_last(pixels: Tensor) -> Tensor:
    """In the memory in which convolutions are faster on a CPU."""
    return pixels.contiguous(memory_format=torch.channels_last) if pixels.ndim == 4 else pixels
