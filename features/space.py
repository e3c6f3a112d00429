"""The FeatureSpace: an encoder and a dictionary whose features are scored, named and illustrated.

    config.json             SpaceConfig, the dictionary's config within it
    dictionary.safetensors  the dictionary's weights
    features.parquet        one row a feature (FEATURE_COLUMNS)
    exemplars.parquet       the samples that activate each feature most (EXEMPLAR_SCHEMA)
    README.md               a model card

What is undefined is NaN in the tables and null in the JSON.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from features.dictionary import Dictionary, Modality
from features.dictionary.base import WEIGHTS, dictionary_from_record
from features.dominance import CLASSES, Classes, Dominance, Rule, classify
from features.embedded import ENCODER_NAMES, SPACES
from features.encoder import Encoder, load_encoder, resolve_device
from features.errors import UserError, first_line
from features.evidence import SWEEP, TopScores, all_measures, class_means, top_scores
from features.files import write_json
from features.monosemanticity import NOBODY, Monosemanticity, TopSamples, TopSimilarity
from features.naming import name_features, vocabulary
from features.pairs import PairSource
from features.processes import from_main_process
from features.scoring import collect
from features.store import SAMPLE_BATCH, ActivationStore, same_pairs

SCHEMA = 2
ENCODE_BATCH = 256
THUMBNAIL_SIDE = 48
THUMBNAIL_COLOURS = 64
THUMBNAIL_BATCH = 512
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

FEATURE_COLUMNS = (
    "feature",
    "mds",
    "mds_low",
    "mds_high",
    "class",
    "uncertain",
    "class_fixed",
    "uncertain_fixed",
    "active_pairs",
    "left_out",
    "energy",
    "image_density",
    "text_density",
    "image_mean_active",
    "text_mean_active",
    "embsim_image",
    "embsim_text",
    "winrate_image",
    "winrate_text",
    "ms_image",
    "ms_text",
    "ms_cross",
    "name",
    "name_score",
)
"""Of features.parquet. `class` follows the paper's relative rule,
`class_fixed` the fixed bounds."""

EXEMPLAR_SCHEMA = pa.schema(
    [
        ("feature", pa.int64()),
        ("modality", pa.string()),
        ("rank", pa.int64()),
        ("sample_id", pa.string()),
        ("caption", pa.string()),
        ("activation", pa.float64()),
        ("thumbnail", pa.binary()),
    ]
)
"""Of exemplars.parquet: rank 0 is the most activating; activation is |a|; thumbnail is a PNG of at
most 48 pixels, null for texts and where the image could not be had."""


@dataclass(frozen=True)
class SpaceConfig:
    """What a FeatureSpace was made from, and its figures over all features."""

    encoder: str
    encoder_fingerprint: str
    dictionary: dict[str, Any]
    dictionary_fingerprint: str
    """sha256 over the dictionary's weights."""
    pairs: str
    pairs_fingerprint: str
    pair_count: int
    store_fingerprint: str
    judge: str
    """The encoder whose embeddings the monosemanticity stands on."""
    judge_fingerprint: str
    judge_independent: bool
    """Whether the judge is another encoder than the one whose features are judged."""
    min_pairs: int
    """A feature with fewer active pairs is unscored."""
    top_m: int
    """Samples that EmbSim and WinRate look at."""
    replicates: int
    """Of the bootstrap behind the intervals."""
    seed: int
    dead: float
    """Share of the features that no sample of the pairs activates."""
    classes: dict[str, dict[str, Any]]
    """By rule, "relative" and "fixed": low, high (bounds), counts (by class), uncertain."""
    floors: dict[str, float | None]
    """What random features get. ms_*: the expected score with activations permuted over the
    samples; embsim_* and winrate_*: the 97.5% quantile over as many sets of `top_m` random samples
    as there are features with that many active ones."""
    skipped: dict[str, int]
    """Pairs that could not be read when the store was made, by reason."""
    class_means: list[dict[str, Any]]
    """Each class's mean of each score of monosemanticity (`features.evidence.class_means`)."""
    schema: int = SCHEMA


class FeatureSpace:
    """Features of an encoder, with their scores, names and exemplars.

    Attributes:
        config: how it was made.
        dictionary: on `device`.
        features: one row a feature, with FEATURE_COLUMNS.
        exemplars: with EXEMPLAR_SCHEMA.
    """

    def __init__(
        self,
        config: SpaceConfig,
        dictionary: Dictionary,
        features: pa.Table,
        exemplars: pa.Table,
        *,
        device: torch.device | str = "cpu",
        encoder: Encoder | str | None = None,
    ) -> None:
        """`encoder`: None loads `config.encoder` when it is first needed; an id is loaded instead
        of that one then.

        Raises:
            UserError: `encoder` has other weights than the one the features belong to.
        """
        self.config = config
        self.device = torch.device(device)
        self.dictionary = dictionary.to(self.device).eval().requires_grad_(False)
        self.features = features
        self.exemplars = exemplars
        self._encoder_id = encoder if isinstance(encoder, str) else config.encoder
        self._encoder = self._checked(encoder) if isinstance(encoder, Encoder) else None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded when it is first asked for.

        Raises:
            UserError: it cannot be loaded, or its weights are not those the features belong to.
        """
        if self._encoder is None:
            self._encoder = self._checked(load_encoder(self._encoder_id, device=self.device))
        return self._encoder

    def encode_images(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Activations `[n, features]` of images, or of their unit embeddings `[n, dim]`.

        Gradients flow back to embeddings. Raises UserError as `encoder` does.
        """
        return self._encode(images, "image")

    def encode_texts(self, texts: Sequence[str] | Tensor) -> Tensor:
        """Activations `[n, features]` of texts, or of their unit embeddings `[n, dim]`.

        Gradients flow back to embeddings. Raises UserError as `encoder` does.
        """
        return self._encode(texts, "text")

    def decode(self, activations: Tensor, modality: Modality) -> Tensor:
        """Embeddings `[n, dim]`, not normalised, of activations `[n, features]`."""
        return self.dictionary.decode(activations.to(self.device), modality)

    def select(
        self,
        modality_class: str | None = None,
        *,
        name: str | None = None,
        min_mds: float | None = None,
        max_mds: float | None = None,
        rule: Rule = "relative",
        certain: bool = False,
    ) -> Tensor:
        """Numbers of the features that meet all conditions: `[selected]` int64, ascending.

        Args:
            modality_class: ImgD, TextD, CrossD or unscored.
            name: words that stand in the feature's name, whatever the case.
            min_mds: least MDS; with a bound on MDS, unscored features are out.
            max_mds: greatest MDS.
            rule: of the classes, "relative" or "fixed".
            certain: leave out features whose interval crosses a bound of their class.

        Raises:
            UserError: an unknown class or rule.
        """
        if rule not in ("relative", "fixed"):
            raise UserError(f"{rule}: unknown rule for the classes; use relative or fixed")
        suffix = "_fixed" if rule == "fixed" else ""
        chosen = np.ones(len(self), dtype=bool)
        if modality_class is not None:
            if modality_class not in CLASSES:
                raise UserError(f"{modality_class}: unknown class; use {', '.join(CLASSES)}")
            chosen &= self._column("class" + suffix) == modality_class
        if name is not None:
            words = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
            chosen &= np.array([bool(words.search(n)) for n in self._column("name")], dtype=bool)
        if min_mds is not None:
            chosen &= self._column("mds") >= min_mds
        if max_mds is not None:
            chosen &= self._column("mds") <= max_mds
        if certain:
            chosen &= ~self._column("uncertain" + suffix)
        return torch.from_numpy(np.flatnonzero(chosen))

    def save(self, folder: str | Path) -> Path:
        """Write the FeatureSpace; one that is there already is replaced.

        Raises:
            UserError: `folder` holds something else.
        """
        folder = Path(folder)
        if folder.exists() and not _replaceable(folder):
            raise UserError(f"{folder}: exists and is no FeatureSpace; name another folder")
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.dictionary.save_weights(temporary / WEIGHTS)
        pq.write_table(self.features, temporary / "features.parquet", compression="zstd")
        pq.write_table(self.exemplars, temporary / "exemplars.parquet", compression="zstd")
        (temporary / "README.md").write_text(model_card(self), encoding="utf-8")
        write_json(temporary / "config.json", dataclasses.asdict(self.config))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        return folder

    @classmethod
    def load(
        cls,
        where: str | Path,
        *,
        device: torch.device | str = "auto",
        encoder: Encoder | str | None = None,
    ) -> FeatureSpace:
        """Load a FeatureSpace.

        Args:
            where: a folder, `embedded`, `embedded-ssl`, or a Hugging Face hub id (org/name).
            device: "auto" is this process's GPU where there is one.
            encoder: to use instead of the one that is recorded, which it must equal; wanted where
                that one came from a folder that has moved.

        Raises:
            UserError: there is none, its schema is another, or the encoder is the wrong one.
        """
        folder = _find(where)
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if record.get("schema") != SCHEMA or "dictionary" not in record:
            raise UserError(f"{where}: not a FeatureSpace of schema {SCHEMA}; score it again")
        known = {f.name for f in dataclasses.fields(SpaceConfig)}
        return cls(
            SpaceConfig(**{key: value for key, value in record.items() if key in known}),
            dictionary_from_record(record["dictionary"], folder / WEIGHTS),
            pq.read_table(folder / "features.parquet"),
            pq.read_table(folder / "exemplars.parquet"),
            device=resolve_device(device),
            encoder=encoder,
        )

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> None:
        """Upload to the Hugging Face hub as the model `repo_id` (org/name).

        Raises:
            UserError: the hub refuses or cannot be reached.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save(Path(scratch) / "space")
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=folder)
            except Exception as error:  # huggingface_hub and its client each raise their own
                raise UserError(
                    f"{repo_id}: cannot be uploaded ({first_line(error)}); log in with `hf auth "
                    "login` and check the name and the network"
                ) from error

    def _column(self, name: str) -> np.ndarray:
        return self.features[name].to_numpy()

    def _checked(self, encoder: Encoder) -> Encoder:
        if encoder.fingerprint != self.config.encoder_fingerprint:
            raise UserError(
                f"{encoder.id}: its weights are not those of {self.config.encoder}, to which these "
                "features belong; give the right encoder or score this one's features"
            )
        return encoder

    def _encode(self, samples: Sequence[Any] | Tensor, modality: Modality) -> Tensor:
        if isinstance(samples, Tensor):
            unit = F.normalize(samples.to(self.device).float(), dim=-1)  # [n, dim]
            return self.dictionary.encode(unit, modality)
        encode = self.encoder.encode_images if modality == "image" else self.encoder.encode_texts
        chunks = [
            encode(samples[start : start + ENCODE_BATCH])
            for start in range(0, len(samples), ENCODE_BATCH)
        ]
        if not chunks:
            return torch.zeros(0, len(self), device=self.device)
        # A clone is an ordinary tensor; what inference_mode returns is not.
        return self.dictionary.encode(torch.cat(chunks).clone().to(self.device), modality)


def score(
    store: ActivationStore,
    dictionary: Dictionary,
    judge: ActivationStore | None = None,
    source: PairSource | None = None,
    *,
    terms: Sequence[str] | None = None,
    batch_size: int = 1024,
    min_pairs: int = 10,
    top_m: int = 20,
    exemplars: int = 8,
    replicates: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> FeatureSpace:
    """Score, name and illustrate the features of a dictionary, in one pass over the store.

    Memory is bounded by the batch and the dictionary. Under `accelerate launch` the processes share
    the pass, and all return the same FeatureSpace.

    Args:
        store: embeddings of the encoder to which the dictionary belongs.
        judge: embeddings of the same pairs by an independent encoder, for the monosemanticity; None
            takes the store itself, and the config then says that the judge is not independent.
        source: where thumbnails come from; None for none.
        terms: to name features by; None takes the captions' own words, tags and attributes.
        min_pairs: a feature with fewer active pairs is unscored.
        top_m: samples that EmbSim and WinRate look at; beside it, the classes' means are computed
            for those of SWEEP.
        exemplars: samples to keep a feature and modality.
        replicates: of the bootstrap.
        device: a torch device; "auto" is this process's GPU where there is one.

    Raises:
        UserError: the dictionary belongs to another encoder, or the judge has other pairs.
    """
    judge = judge or store
    _check_inputs(store, dictionary, judge)
    if terms is None:
        terms = from_main_process(lambda: vocabulary(store.sample_batches(SAMPLE_BATCH)))
    device = resolve_device(device)
    dictionary = dictionary.to(device).eval().requires_grad_(False)
    sizes = sorted({*SWEEP, top_m})
    found = collect(
        store,
        dictionary,
        judge,
        terms,
        kept=max(*sizes, exemplars),
        batch_size=batch_size,
        seed=seed,
        replicates=replicates,
        device=device,
        progress=progress,
    )

    def finish() -> tuple[SpaceConfig, pa.Table, pa.Table]:
        scores = found.dominance.scores(min_pairs)
        classes = {
            rule: classify(scores.mds, scores.ci_low, scores.ci_high, rule)
            for rule in ("relative", "fixed")
        }
        meaning = found.monosemanticity.scores()
        if not judge.config.shared_space:
            meaning = meaning.without_cross()
        tops = {m: top_scores(found.best, judge, m, seed) for m in sizes}
        relative = classes["relative"].names
        image_share = np.where(np.isfinite(scores.mds), scores.mds, scores.energy)
        names = name_features(found.naming, image_share, relative.tolist())
        config = SpaceConfig(
            encoder=store.config.encoder,
            encoder_fingerprint=store.config.encoder_fingerprint,
            dictionary=dataclasses.asdict(dictionary.config),
            dictionary_fingerprint=dictionary.fingerprint(),
            pairs=store.config.pairs,
            pairs_fingerprint=store.config.pairs_fingerprint,
            pair_count=len(store),
            store_fingerprint=store.fingerprint,
            judge=judge.config.encoder,
            judge_fingerprint=judge.config.encoder_fingerprint,
            judge_independent=judge.config.encoder_fingerprint != store.config.encoder_fingerprint,
            min_pairs=min_pairs,
            top_m=top_m,
            replicates=replicates,
            seed=seed,
            dead=float((scores.active_pairs == 0).mean()),
            classes={rule: _class_record(result) for rule, result in classes.items()},
            floors=_floors(tops[top_m], meaning),
            skipped=store.config.skipped_reasons,
            class_means=class_means(all_measures(tops.values(), meaning), relative, seed=seed),
        )
        similar = tops[top_m].similar
        table = _feature_table(scores, classes, similar, meaning, names.names, names.scores)
        return config, table, _exemplar_table(found.best, exemplars, store, source)

    config, table, shown = from_main_process(finish)
    return FeatureSpace(config, dictionary, table, shown, device=device)


def _check_inputs(store: ActivationStore, dictionary: Dictionary, judge: ActivationStore) -> None:
    """Raise UserError where the inputs don't belong together."""
    made_for = dictionary.config.encoder_fingerprint
    if made_for and made_for != store.config.encoder_fingerprint:
        raise UserError(
            f"{store.path}: holds embeddings of {store.config.encoder}, but the dictionary was "
            f"fitted on {dictionary.config.encoder}; fit one on this store"
        )
    if dictionary.config.dim != store.dim:
        raise UserError(
            f"{store.path}: embeddings of {store.dim} dimensions, but the dictionary takes "
            f"{dictionary.config.dim}; fit one on this store"
        )
    if len(store) == 0:
        raise UserError(f"{store.path}: holds no pairs; extract some first")
    if judge is not store and not same_pairs(store, judge):
        raise UserError(
            f"{judge.path}: the judge's pairs are not those of {store.path}, row by row; extract "
            "both stores from the same pairs"
        )


def _floors(top: TopScores, meaning: Monosemanticity) -> dict[str, float | None]:
    floors = {
        "ms_image": meaning.floor_image,
        "ms_text": meaning.floor_text,
        "ms_cross": meaning.floor_cross,
    }
    floors |= {f"embsim_{modality}": floor for modality, floor in top.embsim_floor.items()}
    floors |= {f"winrate_{modality}": floor for modality, floor in top.winrate_floor.items()}
    return {name: _finite(floor) for name, floor in floors.items()}


def _feature_table(
    scores: Dominance,
    classes: dict[str, Classes],
    similar: dict[str, TopSimilarity],
    meaning: Monosemanticity,
    names: list[str],
    name_scores: np.ndarray,
) -> pa.Table:
    columns = {
        "feature": np.arange(len(scores.mds)),
        "mds": scores.mds,
        "mds_low": scores.ci_low,
        "mds_high": scores.ci_high,
        "class": classes["relative"].names,
        "uncertain": classes["relative"].uncertain,
        "class_fixed": classes["fixed"].names,
        "uncertain_fixed": classes["fixed"].uncertain,
        "active_pairs": scores.active_pairs,
        "left_out": scores.left_out,
        "energy": scores.energy,
        "image_density": scores.image_density,
        "text_density": scores.text_density,
        "image_mean_active": scores.image_mean_active,
        "text_mean_active": scores.text_mean_active,
        "embsim_image": similar["image"].embsim,
        "embsim_text": similar["text"].embsim,
        "winrate_image": similar["image"].winrate,
        "winrate_text": similar["text"].winrate,
        "ms_image": meaning.ms_image,
        "ms_text": meaning.ms_text,
        "ms_cross": meaning.ms_cross,
        "name": names,
        "name_score": name_scores,
    }
    return pa.table({name: columns[name] for name in FEATURE_COLUMNS})


def _exemplar_table(
    best: dict[str, TopSamples], count: int, store: ActivationStore, source: PairSource | None
) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in EXEMPLAR_SCHEMA.names}
    rows: list[int] = []
    for modality, top in best.items():
        numbers = top.samples[:, :count].cpu()  # [features, count]
        found = (numbers != NOBODY).nonzero()  # [exemplars, 2], by feature, then by rank
        columns["feature"] += found[:, 0].tolist()
        columns["rank"] += found[:, 1].tolist()
        columns["modality"] += [modality] * len(found)
        columns["activation"] += top.values.cpu()[found[:, 0], found[:, 1]].tolist()
        rows += numbers[found[:, 0], found[:, 1]].tolist()
    taken = store.sample_rows(rows, ["id", "caption", "location"])
    columns["sample_id"] = taken["id"].to_pylist()
    columns["caption"] = taken["caption"].to_pylist()
    locations = taken["location"].to_pylist()
    shown = [
        location if modality == "image" else None
        for location, modality in zip(locations, columns["modality"], strict=True)
    ]
    pictures = _thumbnails(source, {location for location in shown if location is not None})
    columns["thumbnail"] = [pictures.get(location) for location in shown]
    return pa.table(columns, schema=EXEMPLAR_SCHEMA)


def _thumbnails(source: PairSource | None, locations: set[str]) -> dict[str | None, bytes]:
    pictures: dict[str | None, bytes] = {}
    if source is None:
        return pictures
    ordered = sorted(locations)
    for start in range(0, len(ordered), THUMBNAIL_BATCH):
        images = source.images(ordered[start : start + THUMBNAIL_BATCH])
        pictures |= {location: thumbnail(image) for location, image in images.items()}
    return pictures


def thumbnail(image: Image.Image) -> bytes:
    """A PNG of at most 48 x 48 pixels and 64 colours."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    content = io.BytesIO()
    small.quantize(THUMBNAIL_COLOURS).save(content, "PNG", optimize=True)
    return content.getvalue()


def model_card(space: FeatureSpace) -> str:
    """The README.md of a saved FeatureSpace, in Markdown with the hub's metadata."""
    config = space.config
    relative, fixed = config.classes["relative"], config.classes["fixed"]
    judge = "independent" if config.judge_independent else "NOT independent: the encoder itself"
    rows = "\n".join(
        f"| {name} | {relative['counts'][name]} | {fixed['counts'][name]} |" for name in CLASSES
    )
    held_out = (config.dictionary.get("held_out") or {}).get("overall", {})
    lines = "\n".join(
        f"| {feature['name'] or '-'} | {feature['class']} | {feature['mds']:.2f} "
        f"({feature['mds_low']:.2f} to {feature['mds_high']:.2f}) | {feature['ms_image']:.3f} | "
        f"{feature['ms_text']:.3f} |"
        for feature in _telling_features(space.features)
    )
    return f"""---
tags:
- sparse-autoencoder
- interpretability
- multimodal
---
# Feature space of {config.encoder}

{len(space)} features of a `{config.dictionary["kind"]}` dictionary on the embeddings of
`{config.encoder}`, scored on {config.pair_count} image-caption pairs of `{config.pairs}`.

```python
from features import FeatureSpace

space = FeatureSpace.load("path or hub id of this folder")
activations = space.encode_texts(["a photo of a dog"])  # [1, {len(space)}]
```

## Modality classes

The Modality Dominance Score (MDS) is 0 where only texts drive a feature and 1 where only images
do. Relative bounds: {_figure(relative["low"])} and {_figure(relative["high"])} (mean -+ one
standard deviation); fixed bounds: {_figure(fixed["low"])} and {_figure(fixed["high"])}. Uncertain
(the 95% interval crosses a bound): {relative["uncertain"]} relative, {fixed["uncertain"]} fixed.
Unscored: fewer than {config.min_pairs} active pairs.

| class | relative | fixed |
| --- | --- | --- |
{rows}

## Quality

- Reconstruction on held-out pairs: fraction of variance unexplained {_figure(held_out.get("fvu"))},
  L0 {_figure(held_out.get("l0"))}.
- Features that none of the pairs activates: {config.dead:.1%}.
- Judge of monosemanticity: `{config.judge}` ({judge}).
- Monosemanticity Score of random features: images {_figure(config.floors.get("ms_image"))}, texts
  {_figure(config.floors.get("ms_text"))}, across {_figure(config.floors.get("ms_cross"))}.

## Some features

| name | class | MDS (95% interval) | MS, images | MS, texts |
| --- | --- | --- | --- | --- |
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


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _class_record(classes: Classes) -> dict[str, Any]:
    counts = {name: int((classes.names == name).sum()) for name in CLASSES}
    return {
        "low": _finite(classes.low),
        "high": _finite(classes.high),
        "counts": counts,
        "uncertain": int(classes.uncertain.sum()),
    }


def _finite(value: float) -> float | None:
    """The value, or None (null in JSON) where it is NaN."""
    return float(value) if math.isfinite(value) else None


def _replaceable(folder: Path) -> bool:
    """Whether the folder is empty or holds a FeatureSpace."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "dictionary" in record and "classes" in record


def _find(where: str | Path) -> Path:
    """The local folder of a FeatureSpace, downloaded where it is on the hub.

    Raises:
        UserError: there is none.
    """
    folder = SPACES / str(where) if str(where) in ENCODER_NAMES else Path(where)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(str(where)):
        raise UserError(
            f"{where}: no FeatureSpace here (no config.json); give its folder, a hub id (org/name) "
            "or embedded"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(where)))
    except Exception as error:  # huggingface_hub and its client each raise their own
        raise UserError(
            f"{where}: no such folder, and the hub has no such model or cannot be reached "
            f"({first_line(error)}); check the name and the network"
        ) from error
