"""What two frozen towers give for all pairs, computed once and kept part by part."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from features.encoders.locked_model import LockedModel
from features.errors import UserError
from features.files import read_json, write_json, write_tensors
from features.pairs.base import Pair, PairSource, Part

log = logging.getLogger(__name__)
IMAGES_A_BATCH = 64
TEXTS_A_BATCH = 128
SETTINGS = "settings.json"


@dataclass(frozen=True)
class TowerFeatures:
    """Features of pictures and of their captions; a caption that stands in two places counts once.

    Picture i has the captions `captions[starts[i] : starts[i + 1]]`, at least one.
    """

    images: Tensor
    """`[pictures, image width]` float32."""
    texts: Tensor
    """`[texts, text width]` float32."""
    captions: Tensor
    """Rows of `texts`, `[captions]` int64."""
    starts: Tensor
    """`[pictures + 1]` int64."""

    def __len__(self) -> int:
        return len(self.images)

    def captions_of(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """All captions of some pictures, `[n]`.

        Returns:
            The captions' rows of `texts` and, as places in `pictures`, whose they are.
        """
        counts = (self.starts[1:] - self.starts[:-1])[pictures]  # [n]
        owners = torch.repeat_interleave(torch.arange(len(pictures)), counts)  # [captions]
        ends = counts.cumsum(0)
        within = torch.arange(len(owners)) - (ends - counts)[owners]
        return self.captions[self.starts[pictures][owners] + within], owners

    def draw_captions(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """One caption of each of some pictures, `[n]`: rows of `texts`."""
        counts = (self.starts[1:] - self.starts[:-1])[pictures]
        draw = torch.rand(len(pictures), generator=generator)
        return self.captions[self.starts[pictures] + (draw * counts).long()]


def compute_features(
    locked: LockedModel, source: PairSource, folder: Path, settings: str, progress: bool = True
) -> TowerFeatures:
    """Features of every readable pair; of parts that `folder` already holds they are read.

    Args:
        settings: a string of all that must be equal for the parts to be of use.

    Raises:
        UserError: the parts in `folder` were made with other settings.
    """
    from rich.progress import track

    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()
    if (folder / SETTINGS).is_file():
        if read_json(folder / SETTINGS).get("sha256") != digest:
            raise UserError(
                f"{folder}: features of other towers, pairs or settings; name another folder or "
                "remove this one"
            )
    else:
        write_json(folder / SETTINGS, {"sha256": digest})
    parts = list(enumerate(source.parts()))
    files = [folder / f"part-{number:05d}.safetensors" for number, _ in parts]
    left = [(number, part) for number, part in parts if not files[number].is_file()]
    for number, part in track(
        left,
        description="the towers' features",
        total=len(parts),
        completed=len(parts) - len(left),
        disable=not progress,
    ):
        _write_part(locked, source, part, files[number])
    return _assemble(files)


def _write_part(locked: LockedModel, source: PairSource, part: Part, file: Path) -> None:
    images, captions = [torch.zeros(0)], []
    for batch in _batches(source, part):
        captions += [pair.captions for pair in batch]
        images.append(locked.image_features([pair.image for pair in batch]).cpu())
    texts = sorted({text for of_one in captions for text in of_one}, key=lambda t: (len(t), t))
    row = {text: index for index, text in enumerate(texts)}
    features = [
        locked.text_features(texts[start : start + TEXTS_A_BATCH]).cpu()
        for start in range(0, len(texts), TEXTS_A_BATCH)
    ]
    tensors = {
        "images": torch.cat(images),
        "texts": torch.cat([torch.zeros(0), *features]),
        "captions": torch.tensor([row[t] for of_one in captions for t in of_one]).long(),
        "counts": torch.tensor([len(of_one) for of_one in captions]).long(),
    }
    write_tensors(file, tensors, {"texts": json.dumps(texts)})


def _batches(source: PairSource, part: Part) -> Iterator[list[Pair]]:
    """The part's readable pairs; what is skipped is logged with its reason."""
    batch: list[Pair] = []
    for pair in source.read(part):
        if isinstance(pair, Pair):
            batch.append(pair)
        else:
            log.warning("%s skipped: %s", pair.location, pair.reason)
        if len(batch) == IMAGES_A_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _assemble(files: list[Path]) -> TowerFeatures:
    """All parts as one; texts of several parts count once."""
    row: dict[str, int] = {}
    images, texts, captions, counts = [], [], [], []
    for file in files:
        with safe_open(file, framework="pt") as part:
            names = json.loads(part.metadata()["texts"])
            if not names:
                continue
            new = [index for index, name in enumerate(names) if name not in row]
            row |= {names[index]: len(row) + place for place, index in enumerate(new)}
            images.append(part.get_tensor("images"))
            texts.append(part.get_tensor("texts")[new])
            rows = torch.tensor([row[name] for name in names])
            captions.append(rows[part.get_tensor("captions")])
            counts.append(part.get_tensor("counts"))
    if not images:
        none = torch.zeros(0)
        return TowerFeatures(none, none, none.long(), torch.zeros(1).long())
    ends = torch.cat(counts).cumsum(0)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    return TowerFeatures(torch.cat(images), torch.cat(texts), torch.cat(captions), starts)
