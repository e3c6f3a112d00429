"""Locked-image tuning with both towers locked: a CLIP of one's own field from two ordinary models.

    mms train-encoder --image-tower timm:convnext_tiny --text-tower sentence-transformers/... \\
        --pairs photos/ --out encoders/mine

Both towers stay as they are; their features are computed once, and two linear heads are trained on
them with the contrastive loss (Zhai et al. 2022, arXiv 2111.07991, with the text tower locked too).
A pair's captions take turns. Where the image tower has a classifier whose classes have names, each
picture has one more text: the mean of its most probable classes' names, weighted by their
probabilities (ConSE, Norouzi et al. 2014, arXiv 1312.5650).
Training stops when retrieval among the pictures held out gets no better.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.distributed import resolve_device
from features.encoders.locked_model import LockedModel, build_locked_model, save_locked_model
from features.encoders.tower_features import TEXTS_A_BATCH, TowerFeatures, compute_features
from features.encoders.towers import public_id
from features.errors import UserError
from features.pairs.base import PairSource

log = logging.getLogger(__name__)
LOGIT_SCALE = 1 / 0.07
MOST_LOGIT_SCALE = 100.0
CLASSES_A_PICTURE = 10
FEWEST_HELD_OUT = 2
MOST_HELD_OUT = 2000
"""More make the search for the best step no better, but slower."""


@dataclass(frozen=True)
class LockedTuning:
    """How two heads are trained on frozen towers."""

    dim: int = 256
    context_length: int = 77
    class_names: bool = True
    """Whether the image tower's classes name each picture too, where it has any."""
    class_share: float = 0.2
    """How often a picture's text is the mix of its classes' names, in [0, 1]."""
    dropout: float = 0.5
    """Of the image tower's features."""
    steps: int = 2000
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    held_out_share: float = 0.1
    """Of the pictures, to stop by; at most 2,000."""
    evaluate_every: int = 10
    patience: int = 20
    """Evaluations without a better one, until training stops."""
    seed: int = 0


def tune_locked_towers(
    source: PairSource,
    image_tower: str,
    text_tower: str,
    out: Path,
    tuning: LockedTuning,
    device: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Train heads on two frozen towers and write an open_clip folder.

    A run that was cut off goes on with the features that `out/tower_features` holds; the folder is
    removed at the end.

    Args:
        image_tower: `timm:NAME`, or a folder with timm's config.json and weights.
        text_tower: a folder or a hub id of a transformers model.

    Returns:
        The record that is written as `training.json`.

    Raises:
        UserError: a tower cannot be loaded, there are too few readable pairs, or `out` holds
            features of another training.
    """
    locked = build_locked_model(
        image_tower, text_tower, tuning.dim, tuning.context_length, resolve_device(device)
    )
    fingerprint = source.fingerprint()
    towers = {"image_tower": public_id(image_tower), "text_tower": public_id(text_tower)}
    settings = json.dumps([towers, tuning.context_length, fingerprint])
    cache = out / "tower_features"
    features = compute_features(locked, source, cache, settings, progress)
    held_out = min(round(tuning.held_out_share * len(features)), MOST_HELD_OUT)
    if held_out < FEWEST_HELD_OUT or held_out > len(features) - FEWEST_HELD_OUT:
        raise UserError(
            f"{source.name}: {len(features)} readable pairs, {held_out} of them to stop by; "
            f"training needs at least {FEWEST_HELD_OUT} of each"
        )
    mixes = class_mixes(locked, features.images) if tuning.class_names else None
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(tuning.seed))
    heads, stopping = train_heads(
        features, mixes, order[held_out:], order[:held_out], tuning, locked.device, progress
    )
    heads.write_to(locked.model)
    record = {
        "schema": 1,
        "training": dataclasses.asdict(tuning),
        **towers,
        "pairs": source.name,
        "pairs_fingerprint": fingerprint,
        "count": len(features),
        "class_names": 0 if mixes is None else len(locked.class_names),
        "stopping": stopping,
    }
    save_locked_model(locked, out, record)
    shutil.rmtree(cache)
    return record


class Heads(nn.Module):
    """A linear head for each tower's features, each tower's divided by their root mean square."""

    def __init__(self, features: TowerFeatures, tuning: LockedTuning) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(tuning.seed)
        widths = (features.images.shape[1], features.texts.shape[1])
        image, text = (
            torch.randn(tuning.dim, width, generator=generator) / width**0.5 for width in widths
        )
        self.image, self.text = nn.Parameter(image), nn.Parameter(text)
        self.log_scale = nn.Parameter(torch.tensor(LOGIT_SCALE).log())
        self.image_size = features.images.square().mean().sqrt().clamp(min=1e-12)
        self.text_size = features.texts.square().mean().sqrt().clamp(min=1e-12)

    def embed_images(self, features: Tensor) -> Tensor:
        """`[n, image width]` -> unit `[n, dim]`."""
        return F.normalize(features.to(self.image) / self.image_size @ self.image.T, dim=-1)

    def embed_texts(self, features: Tensor) -> Tensor:
        """`[n, text width]` -> unit `[n, dim]`."""
        return F.normalize(features.to(self.text) / self.text_size @ self.text.T, dim=-1)

    @torch.no_grad()
    def write_to(self, model: nn.Module) -> None:
        """Put the heads into open_clip's model."""
        model.visual.head.proj.weight.copy_(self.image / self.image_size)  # type: ignore[union-attr, operator]
        model.text.proj.weight.copy_(self.text / self.text_size)  # type: ignore[union-attr, operator]
        model.logit_scale.copy_(self.log_scale)  # type: ignore[operator]


def train_heads(
    features: TowerFeatures,
    mixes: Tensor | None,
    train: Tensor,
    held_out: Tensor,
    tuning: LockedTuning,
    device: torch.device,
    progress: bool = True,
) -> tuple[Heads, dict[str, Any]]:
    """Train heads on the pictures `train` and keep those that were best on `held_out`.

    Args:
        mixes: one more text of each picture, as text features `[pictures, text width]`; None for
            none.
        train: pictures to train on, `[n]` int64.
        held_out: pictures to stop by, at least two.

    Returns:
        The heads, and how it went: the best step, and the figures on `held_out` there.
    """
    from rich.progress import track

    heads = Heads(features, tuning).to(device)
    heads.image_size, heads.text_size = heads.image_size.to(device), heads.text_size.to(device)
    groups: list[dict[str, Any]] = [
        {"params": [heads.image, heads.text]},
        {"params": [heads.log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=tuning.learning_rate,
        weight_decay=tuning.weight_decay,
    )
    generator = torch.Generator().manual_seed(tuning.seed)
    best: dict[str, Any] = {"step": 0, **retrieval(heads, features, held_out)}
    weights = {name: value.clone() for name, value in heads.state_dict().items()}
    size = min(tuning.batch_size, len(train))
    for step in track(
        range(1, tuning.steps + 1), description="training the heads", disable=not progress
    ):
        pictures = train[torch.randperm(len(train), generator=generator)[:size]]
        captions = features.draw_captions(pictures, generator)
        same = captions[:, None] == captions[None, :]  # [size, size]
        texts = features.texts[captions]  # [size, text width]
        if mixes is not None:
            mixed = torch.rand(size, generator=generator) < tuning.class_share
            texts = torch.where(mixed[:, None], mixes[pictures], texts)
            same &= ~(mixed[:, None] | mixed[None, :]) | torch.eye(size, dtype=torch.bool)
        images = features.images[pictures]  # [size, image width]
        kept = torch.rand(images.shape, generator=generator) >= tuning.dropout
        loss = contrastive_loss(
            heads.embed_images(images * kept),
            heads.embed_texts(texts),
            heads.log_scale.exp(),
            same.to(device),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            heads.log_scale.clamp_(max=torch.tensor(MOST_LOGIT_SCALE).log().item())
        if step % tuning.evaluate_every and step != tuning.steps:
            continue
        figures = retrieval(heads, features, held_out)
        if figures["mean_reciprocal_rank"] > best["mean_reciprocal_rank"]:
            best = {"step": step, **figures}
            weights = {name: value.clone() for name, value in heads.state_dict().items()}
        elif step - best["step"] >= tuning.patience * tuning.evaluate_every:
            log.info("step %d: no better than at step %d", step, best["step"])
            break
    heads.load_state_dict(weights)
    return heads, best


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Both directions' cross-entropy, in which equal texts are equally right (UniCL, Yang et al.
    2022, arXiv 2204.03610, equation 2).

    Args:
        images: unit embeddings `[n, dim]`.
        texts: unit embeddings `[n, dim]`, row i the text of image i.
        scale: the inverse temperature.
        same: whether two texts are the same one, `[n, n]` bool, symmetric, true on the diagonal.
    """
    logits = scale * images @ texts.T  # [n, n]
    targets = same / same.sum(1, keepdim=True)  # [n, n]
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@torch.no_grad()
def class_mixes(locked: LockedModel, images: Tensor) -> Tensor | None:
    """The text features of each picture's most probable classes' names, weighted by their
    probabilities: `[pictures, text width]`; None where the image tower has no named classes.

    Args:
        images: the image tower's features `[pictures, image width]`.
    """
    if locked.classifier is None:
        return None
    names = [name.partition(",")[0] for name in locked.class_names]
    vectors = torch.cat(
        [
            locked.text_features(names[start : start + TEXTS_A_BATCH]).cpu()
            for start in range(0, len(names), TEXTS_A_BATCH)
        ]
    )  # [classes, text width]
    mixes = []
    for batch in images.split(4096):
        probabilities = locked.classifier(batch.to(locked.device)).softmax(-1).cpu()
        top, classes = probabilities.topk(min(CLASSES_A_PICTURE, len(names)))  # [batch, top]
        weights = top / top.sum(1, keepdim=True)
        mixes.append((weights[:, None] @ vectors[classes])[:, 0])
    return torch.cat(mixes)


@torch.no_grad()
def retrieval(heads: Heads, features: TowerFeatures, pictures: Tensor) -> dict[str, float]:
    """How well some pictures and all their captions find each other, among themselves.

    Returns:
        `i2t_r1`, `i2t_r5`: pictures of whose captions one is among the nearest; `t2i_r1`,
        `t2i_r5`: captions whose picture is; `mean_reciprocal_rank` over both; all in [0, 1]; `n`
        pictures.
    """
    captions, owners = features.captions_of(pictures)
    images = heads.embed_images(features.images[pictures])
    texts = heads.embed_texts(features.texts[captions])
    similarity = (images @ texts.T).cpu()  # [pictures, captions]
    own = owners[None, :] == torch.arange(len(pictures))[:, None]  # [pictures, captions]
    nearest = similarity.masked_fill(~own, -2.0).amax(1)  # [pictures]
    image_ranks = ((similarity > nearest[:, None]) & ~own).sum(1) + 1
    its = similarity[owners, torch.arange(len(owners))]  # [captions]
    text_ranks = (similarity > its[None, :]).sum(0) + 1
    ranks = torch.cat([image_ranks, text_ranks]).double()
    figures = {"mean_reciprocal_rank": (1 / ranks).mean().item(), "n": len(pictures)}
    for k in (1, 5):
        figures[f"i2t_r{k}"] = (image_ranks <= k).double().mean().item()
        figures[f"t2i_r{k}"] = (text_ranks <= k).double().mean().item()
    return figures
