"""An evaluator of drawn pictures, trained apart from everything that is steered: a small residual
network on the training drawings under random planted factors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from features.distributed import mixed_precision
from features.embedded.world import BACKGROUNDS, EmbeddedPairs, PlantedFactors, render
from features.files import replacing
from features.pairs.base import Pair

ATTRIBUTES = ("gender", "skin_tone", "role", "background")
COMMON_ROLES = 40
STEPS = 2100
"""Of training; chosen by `benchmarks.evaluator_steps`."""
EARLIER_STEPS = 700
"""Of the evaluator of 0.1.0, in whose features distances compare with 0.1.0's."""
BATCH = 64
PEAK_RATE = 3e-3


@dataclass(frozen=True)
class Vocabulary:
    """The values of each attribute that the evaluator tells apart."""

    values: dict[str, list[str]]

    @classmethod
    def of(cls, source: EmbeddedPairs) -> Vocabulary:
        """Man and woman, five skin tones, the commonest roles, all backgrounds."""
        counts: dict[str, int] = {}
        for row in source.rows:
            if row["role"] and row["gender"] in ("man", "woman"):
                counts[row["role"]] = counts.get(row["role"], 0) + 1
        roles = sorted(counts, key=lambda role: (-counts[role], role))[:COMMON_ROLES]
        tones = sorted({row["skin_tone"] for row in source.rows} - {None, "mixed"})
        return cls(
            {
                "gender": ["man", "woman"],
                "skin_tone": tones,
                "role": sorted(roles),
                "background": list(BACKGROUNDS),
            }
        )

    def label(self, attribute: str, value: str | None) -> int:
        """The value's place, -100 (no label) where it has none."""
        values = self.values[attribute]
        return values.index(value) if value in values else -100

    def labels(self, attribute: str, pairs: Sequence[Pair]) -> np.ndarray:
        """The places of pairs' values, `[n]`."""
        return np.array([self.label(attribute, pair.attributes[attribute]) for pair in pairs])


class Evaluator(nn.Module):
    """One head an attribute, on shared features."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        from torchvision.models.resnet import BasicBlock, ResNet

        self.vocabulary = vocabulary
        self.body = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=1)
        self.body.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
        self.body.maxpool = nn.Identity()
        self.body.fc = nn.Identity()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(512, len(values)) for name, values in vocabulary.values.items()}
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps after each stage."""
        body = self.body
        x = body.relu(body.bn1(body.conv1(x)))
        found = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Pictures `[n, 3, 64, 64]` in [-1, 1] -> logits by attribute."""
        pooled = self.body(x)
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.inference_mode()
    def pooled(self, images: list[Image.Image]) -> Tensor:
        """`[n, 512]`, for distances between sets."""
        return torch.cat(
            [self.body(tensor(images[i : i + 128])) for i in range(0, len(images), 128)]
        )

    @torch.inference_mode()
    def logits(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """Logits by attribute, `[n, values]`."""
        found = [self(tensor(images[i : i + 128])) for i in range(0, len(images), 128)]
        return {name: torch.cat([part[name] for part in found]) for name in self.heads}

    @torch.inference_mode()
    def distance(self, first: list[Image.Image], second: list[Image.Image]) -> Tensor:
        """How different pictures look, pair by pair `[n]`: as LPIPS without its learned weights,
        squared differences of unit features, averaged over places and added over stages."""
        a, b = self.maps(tensor(first)), self.maps(tensor(second))
        stages = [
            (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean((1, 2))
            for x, y in zip(a, b, strict=True)
        ]
        return torch.stack(stages).sum(0)


def tensor(images: list[Image.Image]) -> Tensor:
    """RGB pictures -> `[n, 3, 64, 64]` in [-1, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB").resize((64, 64))) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def load_evaluator(folder: Path, seed: int, steps: int = STEPS) -> Evaluator:
    """The evaluator in a folder; it is trained where there is none."""
    source = EmbeddedPairs("train")
    weights = folder / f"evaluator-{seed}-{steps}.safetensors"
    if not weights.is_file():
        evaluator = trained(source, taught_people(source), steps, seed)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(weights) as temporary:
            save_file(evaluator.state_dict(), temporary)
        return evaluator
    evaluator = Evaluator(Vocabulary.of(source))
    evaluator.load_state_dict(load_file(weights))
    return evaluator.eval().requires_grad_(False)


def taught_people(source: EmbeddedPairs) -> list[int]:
    """Drawings that show a gender or a skin tone."""
    return [
        index
        for index, row in enumerate(source.rows)
        if row["gender"] in ("man", "woman") or row["skin_tone"]
    ]


def trained(source: EmbeddedPairs, people: Sequence[int], steps: int, seed: int) -> Evaluator:
    """An evaluator that learnt from some drawings for so many steps."""
    torch.manual_seed(seed)
    evaluator = Evaluator(Vocabulary.of(source))
    drawings = {index: source.drawing(index) for index in people}
    optimizer = torch.optim.AdamW(evaluator.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, steps)
    rng = random.Random(seed)
    evaluator.train()
    for _ in track(range(steps), "training the evaluator"):
        chosen = [rng.choice(people) for _ in range(BATCH)]
        factors = [PlantedFactors.draw(rng) for _ in chosen]
        images = [render(drawings[i], f) for i, f in zip(chosen, factors, strict=True)]
        x = tensor(images)
        x = x + 0.1 * torch.randn(
            x.shape, generator=torch.Generator().manual_seed(rng.getrandbits(32))
        )
        with mixed_precision("cpu"):
            logits = evaluator(x)
        loss = torch.zeros(())
        for name, found in logits.items():
            values = [
                f.background if name == "background" else source.rows[i][name]
                for i, f in zip(chosen, factors, strict=True)
            ]
            labels = torch.tensor([evaluator.vocabulary.label(name, value) for value in values])
            if (labels >= 0).any():
                loss = loss + F.cross_entropy(found.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return evaluator.eval().requires_grad_(False)
