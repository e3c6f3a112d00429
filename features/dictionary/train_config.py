"""How to fit a dictionary: one dataclass behind the commands and the trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from features.errors import UserError

STEPS = 3000
DECAY_SHARE = 0.2
SELECTIONS = ("auto", "exact", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """How to fit a dictionary.

    How long: `steps`, `samples` or `epochs`, one of them; 3,000 steps where none is given.
    """

    kind: str = "topk"
    features: int | None = None
    """None: 4 times the embedding's dimensions (identity: the dimensions)."""
    k: int = 16
    """Active features a sample (identity: all)."""
    modality_bias: bool | None = None
    """Centre images and texts by their own means; None: as the kind does."""
    batch_size: int = 256
    """Pairs a step, over all processes; a tenth of them is held out."""
    steps: int | None = None
    samples: int | None = None
    """Pairs to go through, those of later epochs counted again."""
    epochs: float | None = None
    """Times to go through all pairs."""
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    dead_samples: int = 12_800
    """A feature that was inactive for so many pairs is dead, until it is active again."""
    evaluate_steps: int = 250
    """Steps between two measurements on held-out pairs."""
    patience: int | None = None
    """Stop after so many measurements that found no better FVU on held-out pairs, and keep the best
    weights; None goes on to the end and keeps the last."""
    checkpoint_steps: int = 500
    selection: str = "auto"
    """How the k features of a sample are found: "exact", by fp32 products; "bf16", where bf16
    products choose a few more candidates, whose fp32 products decide; "auto" takes the faster."""
    seed: int = 0

    def total_steps(self, pairs: int) -> int:
        """Steps to train on a store of so many pairs.

        Raises:
            UserError: a setting is out of its range, or more than one says how long.
        """
        counts = {
            "batch_size": self.batch_size,
            "steps": self.steps,
            "samples": self.samples,
            "epochs": self.epochs,
            "dead_samples": self.dead_samples,
            "evaluate_steps": self.evaluate_steps,
            "patience": self.patience,
            "checkpoint_steps": self.checkpoint_steps,
        }
        for name, count in counts.items():
            least = 0 if name == "epochs" else 1
            if count is not None and (count < least or count == 0):
                raise UserError(
                    f"{name} {count}: must be {'above 0' if least == 0 else 'at least 1'}"
                )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"learning_rate {self.learning_rate}: must be above 0")
        if self.selection not in SELECTIONS:
            known = ", ".join(SELECTIONS)
            raise UserError(f"selection {self.selection}: unknown; use one of {known}")
        given = [name for name in ("steps", "samples", "epochs") if counts[name] is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: give one of them, how long to train")
        if self.samples is not None:
            return math.ceil(self.samples / self.batch_size)
        if self.epochs is not None:
            return math.ceil(self.epochs * math.ceil(pairs / self.batch_size))
        return STEPS if self.steps is None else self.steps

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: linear warm-up, then constant, then linearly to zero over
        the last fifth of the steps."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (steps - step) / max(1.0, DECAY_SHARE * steps)
        return self.learning_rate * min(warm, left)
