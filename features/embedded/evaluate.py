"""How good an encoder is on the embedded world: retrieval, zero-shot, probes for planted factors.

Each function returns one hit (bool) a sample, so that any interval can be put on the mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.bootstrap import mean_estimate
from features.embedded.build_pairs import GENDER_WORDS, SKIN_TONES
from features.embedded.photos import PhotoPairs
from features.embedded.world import REGISTERS, EmbeddedPairs
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.files import write_json
from features.pairs.base import Pair, PairSource

GENDERS = ("man", "woman")
BATCH = 64
"""Pairs encoded at once."""


def retrieval_hits(queries: Tensor, targets: Tensor, k: int) -> np.ndarray:
    """Whether each query's own target is among its k nearest: bool `[n]`.

    Args:
        queries: unit embeddings `[n, d]`; the target of query i is row i of `targets`.
    """
    similarity = queries @ targets.T  # [n, n]
    own = similarity.diagonal()[:, None]
    rank = (similarity > own).sum(dim=1)  # [n]
    return (rank < k).cpu().numpy()


def class_vectors(encoder: Encoder, prompts: Sequence[Sequence[str]]) -> Tensor:
    """One unit vector a class, the normalised mean over its prompts: `[classes, d]`
    (prompt ensembling, Radford et al. 2021, section 3.1.4)."""
    means = [encoder.encode_texts(list(texts)).mean(dim=0) for texts in prompts]
    return F.normalize(torch.stack(means), dim=-1)


def zero_shot_hits(
    images: Tensor, labels: Sequence[str], classes: Sequence[str], vectors: Tensor
) -> np.ndarray:
    """Whether the nearest class vector is the label's: bool `[n]`."""
    nearest = (images @ vectors.T).argmax(dim=1).tolist()
    return np.array([classes[c] == label for c, label in zip(nearest, labels, strict=True)])


def probe_hits(
    train: Tensor, train_labels: Sequence[str], test: Tensor, test_labels: Sequence[str]
) -> np.ndarray:
    """Whether a logistic regression on embeddings finds the label: bool `[n]`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(train.cpu().numpy(), np.array(train_labels))
    return probe.predict(test.cpu().numpy()) == np.array(test_labels)


def _training_names() -> list[str]:
    """Names of training pairs about one man or woman, without a skin tone."""
    return [
        row["text"]
        for row in EmbeddedPairs("train").rows
        if row["gender"] in GENDERS
        and row["skin_tone"] is None
        and re.search(r"\b(wo)?man\b", row["text"])
        and len(GENDER_WORDS.findall(row["text"])) == 1
    ]


def gender_prompts() -> list[list[str]]:
    """Prompts for man and for woman, the same roles in both."""
    template = REGISTERS["plain"][0]
    patterns = sorted({re.sub(r"\b(wo)?man\b", "{}", name) for name in _training_names()})
    return [[template.format(p.format(gender)) for p in patterns] for gender in GENDERS]


def skin_tone_prompts() -> list[list[str]]:
    """Prompts for each skin tone, the same people in all."""
    template = REGISTERS["plain"][0]
    names = _training_names()
    return [[template.format(f"{n}: {tone} skin tone") for n in names] for tone in SKIN_TONES]


def evaluate_encoder(encoder: Encoder, draw_seed: int = 1) -> dict[str, np.ndarray]:
    """Hits by measure: retrieval and zero-shot on the held-out combinations, and linear probes.

    The probes for the planted factors train on the training pairs and are tested on the held-out
    ones, each under its own draw of the factors.
    """
    held_out = embed_pairs(encoder, EmbeddedPairs("heldout", draw_seed))
    train = embed_pairs(encoder, EmbeddedPairs("train", draw_seed))
    images, texts, attributes = held_out
    hits = {}
    for k in (1, 5):
        hits[f"retrieval/i2t_r{k}"] = retrieval_hits(images, texts, k)
        hits[f"retrieval/t2i_r{k}"] = retrieval_hits(texts, images, k)
    labels = {name: [str(a[name]) for a in attributes] for name in ("gender", "skin_tone")}
    gendered = [i for i, label in enumerate(labels["gender"]) if label in GENDERS]
    hits["zeroshot/gender"] = zero_shot_hits(
        images[gendered],
        [labels["gender"][i] for i in gendered],
        GENDERS,
        class_vectors(encoder, gender_prompts()),
    )
    hits["zeroshot/skin_tone"] = zero_shot_hits(
        images, labels["skin_tone"], SKIN_TONES, class_vectors(encoder, skin_tone_prompts())
    )
    train_images, train_texts, train_attributes = train
    for factor, seen, unseen in (
        ("background", train_images, images),
        ("register", train_texts, texts),
    ):
        hits[f"probe/{factor}"] = probe_hits(
            seen,
            [str(a[factor]) for a in train_attributes],
            unseen,
            [str(a[factor]) for a in attributes],
        )
    return hits


def embed_pairs(
    encoder: Encoder, source: PairSource
) -> tuple[Tensor, Tensor, list[dict[str, str | None]]]:
    """Image and text embeddings `[n, d]` and attributes of a whole small source."""
    images, texts, attributes = [], [], []
    for part in source.parts():
        pairs = [pair for pair in source.read(part) if isinstance(pair, Pair)]
        attributes += [pair.attributes for pair in pairs]
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            images.append(encoder.encode_images([pair.image for pair in batch]))
            texts.append(encoder.encode_texts([pair.captions[0] for pair in batch]))
    return torch.cat(images), torch.cat(texts), attributes


def evaluate_photos(encoder: Encoder) -> dict[str, np.ndarray]:
    """Hits by measure: retrieval among the photographs held out, by alt text and by context."""
    hits = {}
    for kind, text in (("alt", "text"), ("context", "context")):
        images, texts, _ = embed_pairs(encoder, PhotoPairs("heldout", text))
        for k in (1, 5):
            hits[f"retrieval/{kind}/i2t_r{k}"] = retrieval_hits(images, texts, k)
            hits[f"retrieval/{kind}/t2i_r{k}"] = retrieval_hits(texts, images, k)
    return hits


EVALUATIONS = {"embedded:train": evaluate_encoder, "photos:train": evaluate_photos}
"""How an encoder is evaluated, by the pairs that it was trained on."""


def write_evaluation(folder: Path, pairs: str, *, device: str = "cpu", seed: int = 0) -> dict:
    """Evaluate the encoder in an open_clip folder and write `held_out.json` beside its weights.

    Args:
        pairs: that it was trained on, one of EVALUATIONS.
    """
    encoder = load_encoder(f"local-dir:{folder}", device=device)
    record = {}
    for measure, hits in EVALUATIONS[pairs](encoder).items():
        share = mean_estimate(hits, seed=seed)
        record[measure] = {
            "value": round(share.value, 4),
            "ci_low": round(share.low, 4),
            "ci_high": round(share.high, 4),
            "n": len(hits),
        }
    write_json(folder / "held_out.json", record)
    return record
