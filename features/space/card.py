"""The model card of a FeatureSpace."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from features.modality import CLASSES, CROSS_MODAL

if TYPE_CHECKING:
    from features.space.space import FeatureSpace


def model_card(space: FeatureSpace) -> str:
    """The README.md of a saved FeatureSpace, in Markdown with the hub's metadata."""
    config = space.config
    relative, fixed = config.classes["relative"], config.classes["fixed"]
    judge = "independent" if config.judge_independent else "NOT independent: the encoder itself"
    rows = "\n".join(
        f"| {name} | {relative['counts'][name]} | {fixed['counts'][name]} |" for name in CLASSES
    )
    held_out = (config.dictionary.get("held_out") or {}).get("within", {})
    lines = "\n".join(
        f"| {feature['name'] or '-'} | {feature['class']} | {feature['mds']:.2f} "
        f"({feature['mds_low']:.2f} to {feature['mds_high']:.2f}) | {feature['agreement']:.2f} "
        f"({feature['agreement_low']:.2f} to {feature['agreement_high']:.2f}) | "
        f"{feature['agreement_floor']:.2f} | {feature['ms_image']:.3f} | {feature['ms_text']:.3f} |"
        for feature in _telling_features(space.features)
    )
    shown = (
        f",\nnamed and illustrated by {config.illustrated_count} of `{config.illustrated}`"
        if config.illustrated
        else ""
    )
    return f"""---
tags:
- sparse-autoencoder
- interpretability
- multimodal
---
# Feature space of {config.encoder}

{len(space)} features of a `{config.dictionary["kind"]}` dictionary on the embeddings of
`{config.encoder}`, scored on {config.pair_count} image-caption pairs of `{config.pairs}`{shown}.

```python
from features import FeatureSpace

space = FeatureSpace.load("path or hub id of this folder")
activations = space.encode_texts(["a photo of a dog"])  # [1, {len(space)}]
```

## Modality classes

The Modality Dominance Score (MDS) is 0 where only texts drive a feature and 1 where only images
do. Relative bounds: {figure(relative["low"])} and {figure(relative["high"])} (mean -+ one
standard deviation); fixed bounds: {figure(fixed["low"])} and {figure(fixed["high"])}. Uncertain
(the 95% interval crosses a bound): {relative["uncertain"]} relative, {fixed["uncertain"]} fixed.
Unscored: fewer than {config.min_pairs} active pairs.

| class | relative | fixed |
| --- | --- | --- |
{rows}

A cross-modal feature may be driven by images here and by texts there. It is *shared* where its
agreement, the weighted Jaccard index of the activations of images and of their own texts, lies
above what the texts of other pairs give (its floor), else *balanced, not shared*.

| cross-modal features | relative | fixed |
| --- | --- | --- |
| shared | {relative["shared"]} | {fixed["shared"]} |
| balanced, not shared | {not_shared(relative)} | {not_shared(fixed)} |

## Quality

- Reconstruction on held-out pairs: fraction of variance within modality unexplained
  {figure(held_out.get("fvu"))}, L0 {figure(held_out.get("l0"))}.
- Features that none of the pairs activates: {config.dead:.1%}.
- Captions longer than the encoder's context, cut to what it sees: {config.captions_cut}.
- Judge of monosemanticity: `{config.judge}` ({judge}).
- Monosemanticity Score of random features: images {figure(config.floors.get("ms_image"))}, texts
  {figure(config.floors.get("ms_text"))}, across {figure(config.floors.get("ms_cross"))}.
- Names: only terms that correlate with a feature by more than
  {figure(config.floors.get("name"))}, which permuted activations reach in 2.5% of features.

## Some features

| name | class | MDS (95% interval) | agreement (the same) | its floor | MS, images | MS, texts |
| --- | --- | --- | --- | --- | --- | --- |
{lines}
"""


def _telling_features(features: pa.Table, each: int = 5) -> list[dict[str, Any]]:
    """Rows of the features of each class with the best-fitting names."""
    rows = [row for row in features.to_pylist() if math.isfinite(row["name_score"])]
    rows.sort(key=lambda row: -row["name_score"])
    chosen = []
    for name in CLASSES[:3]:
        chosen += [row for row in rows if row["class"] == name][:each]
    return chosen


def not_shared(record: dict[str, Any]) -> int:
    """Cross-modal features that are balanced, not shared, of one rule's record in the config."""
    return record["counts"][CROSS_MODAL] - record["shared"]


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
