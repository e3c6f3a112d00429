"""Locked-image tuning with both towers locked: a CLIP of one's own field from two ordinary models.

    mms train-encoder --image-tower timm:convnext_tiny --text-tower sentence-transformers/... \\
        --pairs photos/ --out encoders/mine

Both towers stay as they are; their features are computed once, and two linear heads are trained on
them (Zhai et al. 2022, arXiv 2111.07991, with the text tower locked too): canonical correlations
give the start, in closed form, and the contrastive loss goes on from there while it helps.
A pair's captions take turns. Where the image tower has a classifier whose classes have names, each
picture has one more text: the mean of its most probable classes' names, weighted by their
probabilities (ConSE, Norouzi et al. 2014, arXiv 1312.5650).
How much the covariances are shrunk and how long the training goes on is chosen on pictures held
out; the heads are then made from all pictures.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.distributed import resolve_device
from features.encoders.locked_model import LockedModel, build_locked_model, save_locked_model
from features.encoders.tower_features import TEXTS_A_BATCH, TowerFeatures, compute_features
from features.encoders.towers import public_id
from features.errors import UserError
from features.pairs.base import PairSource

LOGIT_SCALE = 1 / 0.07
MOST_LOGIT_SCALE = 100.0
CLASSES_A_PICTURE = 10
SHRINKAGES = (0.3, 1.0, 3.0, 10.0)
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
    dropout: float = 0.5
    """Of the image tower's features, in [0, 1)."""
    steps: int = 2000
    batch_size: int = 512
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    held_out_share: float = 0.1
    """Of the pictures, to choose by; at most 2,000."""
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
    held_out = held_out_count(len(features), tuning)
    if held_out < FEWEST_HELD_OUT or held_out > len(features) - FEWEST_HELD_OUT:
        raise UserError(
            f"{source.name}: {len(features)} readable pairs, {held_out} of them held out; "
            f"training needs at least {FEWEST_HELD_OUT} of each"
        )
    narrower = min(features.images.shape[1], features.texts.shape[1])
    if tuning.dim > narrower:
        raise UserError(f"--dim {tuning.dim}: the narrower tower has {narrower}; give at most that")
    mixes = class_mixes(locked, features.images) if tuning.class_names else None
    heads, choice = train_heads(features, mixes, tuning, locked.device, progress)
    heads.write_to(locked.model)
    record = {
        "schema": 1,
        "training": dataclasses.asdict(tuning),
        **towers,
        "pairs": source.name,
        "pairs_fingerprint": fingerprint,
        "count": len(features),
        "class_names": 0 if mixes is None else len(locked.class_names),
        "choice": choice,
    }
    save_locked_model(locked, out, record)
    shutil.rmtree(cache)
    return record


class Heads(nn.Module):
    """A linear head for each tower's features; the texts' features have unit length before it."""

    def __init__(self, image: Tensor, image_bias: Tensor, text: Tensor) -> None:
        super().__init__()
        self.image, self.image_bias = nn.Parameter(image), nn.Parameter(image_bias)
        self.text = nn.Parameter(text)
        self.log_scale = nn.Parameter(torch.tensor(LOGIT_SCALE, device=text.device).log())

    def embed_images(self, features: Tensor) -> Tensor:
        """`[n, image width]` -> unit `[n, dim]`."""
        return F.normalize(features.to(self.image) @ self.image.T + self.image_bias, dim=-1)

    def embed_texts(self, features: Tensor) -> Tensor:
        """`[n, text width]` -> unit `[n, dim]`."""
        return F.normalize(F.normalize(features.to(self.text), dim=-1) @ self.text.T, dim=-1)

    @torch.no_grad()
    def write_to(self, model: nn.Module) -> None:
        """Put the heads into open_clip's model."""
        visual, text = cast(Any, model.visual), cast(Any, model.text)
        visual.head.proj.weight.copy_(self.image)
        visual.head.proj.bias.copy_(self.image_bias)
        text.proj.weight.copy_(self.text)
        cast(Tensor, model.logit_scale).copy_(self.log_scale)


@torch.no_grad()
def correlated_heads(
    features: TowerFeatures,
    mixes: Tensor | None,
    train: Tensor,
    dim: int,
    shrinkage: float,
    device: torch.device,
) -> Heads:
    """The heads of regularised canonical correlation analysis (Hardoon et al. 2004, section 3.2),
    each axis weighted by its correlation.

    With C_x, C_y and C_xy the pictures' covariance, the unit texts' second moments and what both
    have in common, and U S V' the singular values of C_x^(-1/2) C_xy C_y^(-1/2), the heads are
    (C_x^(-1/2) U S)' and (C_y^(-1/2) V S)', cut to `dim` axes. Every picture counts once, however
    many captions it has.

    Args:
        mixes: one more text of each picture `[pictures, text width]`; None for none.
        train: pictures to look at, `[n]` int64.
        dim: at most the smaller tower's width.
        shrinkage: times the mean variance, what is added to each variance; above 0.
    """
    captions, owners = features.captions_of(train)
    texts = F.normalize(features.texts[captions].to(device), dim=-1)  # [captions, text width]
    if mixes is not None:
        texts = torch.cat([texts, F.normalize(mixes[train].to(device), dim=-1)])
        owners = torch.cat([owners, torch.arange(len(train))])
    owners = owners.to(device)
    weights = 1 / owners.bincount()[owners] / len(train)  # [captions], of sum 1
    images = features.images[train].to(device)  # [n, image width]
    mean = images.mean(0)
    images = images - mean
    means = torch.zeros(len(train), texts.shape[1], device=device)  # [n, text width], over n
    means.index_add_(0, owners, texts * weights[:, None])
    of_images = _inverse_root(images.T @ images / len(train), shrinkage)
    of_texts = _inverse_root(texts.T @ (texts * weights[:, None]), shrinkage)
    u, s, v = torch.linalg.svd(of_images @ (images.T @ means) @ of_texts, full_matrices=False)
    image = _scaled((of_images @ (u[:, :dim] * s[:dim])).T)  # [dim, image width]
    text = _scaled((of_texts @ (v[:dim].T * s[:dim])).T)  # [dim, text width]
    return Heads(image, -(image @ mean), text)


def _scaled(head: Tensor) -> Tensor:
    """The head with outputs of about unit variance for inputs of unit variance, which changes no
    embedding."""
    return (head / head.norm().clamp(min=1e-12) * len(head) ** 0.5).contiguous()


def _inverse_root(covariance: Tensor, shrinkage: float) -> Tensor:
    """The shrunk covariance to the power -1/2."""
    level = shrinkage * covariance.diagonal().mean().clamp(min=1e-12)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * (values.clamp(min=0) + level) ** -0.5 @ vectors.T


def train_heads(
    features: TowerFeatures,
    mixes: Tensor | None,
    tuning: LockedTuning,
    device: torch.device,
    progress: bool = True,
) -> tuple[Heads, dict[str, Any]]:
    """Find heads for some pictures and their texts.

    The heads begin as `correlated_heads`, and the contrastive loss takes them on from there. The
    shrinkage and the number of steps are those that are best on the pictures held out; with these
    the heads are then made from all pictures.

    Args:
        mixes: one more text of each picture, as text features `[pictures, text width]`; None for
            none.

    Returns:
        The heads, and how it went: the shrinkage, the steps, and the figures on the pictures held
        out, before the heads had seen them.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(tuning.seed))
    count = held_out_count(len(features), tuning)
    held_out, train = order[:count], order[count:]
    heads, best = _best_start(features, mixes, train, held_out, tuning, device)
    for step in _contrastive_steps(heads, features, mixes, train, tuning, tuning.steps, progress):
        if step % tuning.evaluate_every and step != tuning.steps:
            continue
        figures = retrieval(heads, features, held_out)
        if figures["mean_reciprocal_rank"] > best["mean_reciprocal_rank"]:
            best |= {"steps": step, **figures}
        elif step - best["steps"] >= tuning.patience * tuning.evaluate_every:
            break
    heads = correlated_heads(features, mixes, order, tuning.dim, best["shrinkage"], device)
    for _ in _contrastive_steps(heads, features, mixes, order, tuning, best["steps"], progress):
        pass
    return heads, best


def held_out_count(pictures: int, tuning: LockedTuning) -> int:
    """How many of the pictures are held out."""
    return min(round(tuning.held_out_share * pictures), MOST_HELD_OUT)


def _contrastive_steps(
    heads: Heads,
    features: TowerFeatures,
    mixes: Tensor | None,
    train: Tensor,
    tuning: LockedTuning,
    steps: int,
    progress: bool,
) -> Iterator[int]:
    """Train `heads` on the pictures `train`; after each step its number comes out."""
    from rich.progress import track

    groups: list[dict[str, Any]] = [
        {"params": [heads.image, heads.text]},
        {"params": [heads.image_bias, heads.log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=tuning.learning_rate, weight_decay=tuning.weight_decay)
    generator = torch.Generator().manual_seed(tuning.seed)
    size = min(tuning.batch_size, len(train))
    for step in track(range(1, steps + 1), description="training the heads", disable=not progress):
        pictures = train[torch.randperm(len(train), generator=generator)[:size]]
        loss = _loss(heads, features, mixes, pictures, tuning.dropout, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            heads.log_scale.clamp_(max=math.log(MOST_LOGIT_SCALE))
        yield step


def _best_start(
    features: TowerFeatures,
    mixes: Tensor | None,
    train: Tensor,
    held_out: Tensor,
    tuning: LockedTuning,
    device: torch.device,
) -> tuple[Heads, dict[str, Any]]:
    """`correlated_heads` with the shrinkage that is best on `held_out`, and the figures there."""
    found = []
    for shrinkage in SHRINKAGES:
        heads = correlated_heads(features, mixes, train, tuning.dim, shrinkage, device)
        found.append((heads, {"shrinkage": shrinkage, **retrieval(heads, features, held_out)}))
    heads, figures = max(found, key=lambda one: one[1]["mean_reciprocal_rank"])
    return heads, {"steps": 0, **figures}


def _loss(
    heads: Heads,
    features: TowerFeatures,
    mixes: Tensor | None,
    pictures: Tensor,
    dropout: float,
    generator: torch.Generator,
) -> Tensor:
    """The contrastive loss of some pictures, `[n]`, each with one of its texts."""
    device = heads.text.device
    captions = features.draw_captions(pictures, generator)
    same = captions[:, None] == captions[None, :]  # [n, n]
    texts = features.texts[captions]  # [n, text width]
    if mixes is not None:
        counts = features.starts[pictures + 1] - features.starts[pictures]
        mixed = torch.rand(len(pictures), generator=generator) < 1 / (counts + 1)
        texts = torch.where(mixed[:, None], mixes[pictures], texts)
        own = torch.eye(len(pictures), dtype=torch.bool)
        same = torch.where(mixed[:, None] | mixed[None, :], own, same)
    images = features.images[pictures]  # [n, image width]
    kept = torch.rand(images.shape, generator=generator) >= dropout
    return contrastive_loss(
        heads.embed_images((images * kept / (1 - dropout)).to(device)),
        heads.embed_texts(texts),
        heads.log_scale.exp(),
        same.to(device),
    )


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
