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
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from features.arrays import holds_numbers, tensor_of
from features.dictionary import Dictionary, Modality
from features.dictionary.base import WEIGHTS, dictionary_from_record
from features.distributed import resolve_device
from features.embedded import SPACE_NAMES, SPACES
from features.encoders.encoder import Encoder, pictures_of, texts_of
from features.encoders.fingerprint import same_encoder
from features.encoders.load import load_encoder
from features.errors import UserError, first_line
from features.files import part_within, read_json, write_json
from features.modality import CLASSES, Rule, place_of
from features.scores.words import holds, normalised
from features.space.card import model_card
from features.space.tables import EXEMPLARS, FEATURES, read_tables

SCHEMA = 3
ENCODE_BATCH = 256
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    """By rule, "relative" and "fixed": low, high (bounds), counts (by class), uncertain, shared
    (cross-modal ones whose agreement lies above its floor)."""
    floors: dict[str, float | None]
    """What random features get. ms_*: the expected score with activations permuted over the
    samples; embsim_* and winrate_*: the 97.5% quantile over as many sets of `top_m` random samples
    as there are features with that many active ones; agreement: the mean of the features' own;
    name: what the best term's correlation reaches in 97.5% of features with permuted activations,
    below which a feature has no name."""
    skipped: dict[str, int]
    """Pairs that could not be read when the store was made, by reason."""
    class_means: list[dict[str, Any]]
    """Each class's mean of each score of monosemanticity (`features.scores.class_means`)."""
    captions_cut: int = 0
    """Captions that are longer than the encoder's context: names stand on what it saw of them."""
    angles: dict[str, float] = field(default_factory=dict)
    """By modality, degrees: the angle between two samples of different pairs is smaller in one case
    of twenty."""
    illustrated: str | None = None
    """Pairs that names and exemplars come from, where not from those that were scored."""
    illustrated_count: int = 0
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
            UserError: `encoder` is another one than the features belong to.
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
            UserError: it cannot be loaded, or is not the one the features belong to.
        """
        if self._encoder is None:
            try:
                loaded = load_encoder(self._encoder_id, device=self.device)
            except UserError as error:
                if self._encoder_id != self.config.encoder:
                    raise
                raise UserError(
                    f"{error}; the FeatureSpace names this encoder: give it as --encoder, where it "
                    "lies elsewhere or was named by hand"
                ) from error
            self._encoder = self._checked(loaded)
        return self._encoder

    def encode_images(self, images: Sequence[Any] | Image.Image | Tensor | np.ndarray) -> Tensor:
        """Activations `[n, features]` of images (`[1, features]` of one alone), or of their
        embeddings `[n, dim]`, which are normalised.

        Gradients flow back to embeddings.

        Raises:
            UserError: the encoder cannot be loaded, an image or a text is none, or the embeddings
                are of another size or not finite.
        """
        return self.encode(images, "image")

    def encode_texts(self, texts: Sequence[str] | str | Tensor | np.ndarray) -> Tensor:
        """Activations `[n, features]` of texts (`[1, features]` of one alone), or of their
        embeddings `[n, dim]`, which are normalised.

        Gradients flow back to embeddings.

        Raises:
            UserError: as `encode_images`.
        """
        return self.encode(texts, "text")

    def encode(self, samples: Any, modality: Modality) -> Tensor:
        """As `encode_images` or `encode_texts`, by the modality."""
        place_of(modality)
        if holds_numbers(samples) and (modality == "text" or samples.ndim < 3):
            embeddings = self.embeddings_of(samples)
            unit = F.normalize(embeddings.to(self.device).float(), dim=-1)  # [n, dim]
            return self.dictionary.encode(unit, modality)
        samples = pictures_of(samples) if modality == "image" else texts_of(samples)
        encode = self.encoder.encode_images if modality == "image" else self.encoder.encode_texts
        chunks = [
            encode(samples[start : start + ENCODE_BATCH])
            for start in range(0, len(samples), ENCODE_BATCH)
        ]
        if not chunks:
            return torch.zeros(0, len(self), device=self.device)
        # A clone is an ordinary tensor; what inference_mode returns is not.
        return self.dictionary.encode(torch.cat(chunks).clone().to(self.device), modality)

    def embeddings_of(self, values: Tensor | np.ndarray) -> Tensor:
        """Embeddings `[n, dim]` as a tensor.

        Args:
            values: a tensor, or whatever numpy takes for an array of numbers.

        Raises:
            UserError: they are no real numbers, of another size than the space's, or not finite.
        """
        given, dim = tensor_of(values, "embeddings"), self.dictionary.config.dim
        if given.ndim != 2 or given.shape[1] != dim:
            raise UserError(f"embeddings {list(given.shape)}: the FeatureSpace takes [n, {dim}]")
        if given.is_complex():
            raise UserError("embeddings of complex numbers have no features; give real ones")
        if not given.is_floating_point() or given.element_size() == 1:  # integers and float8
            given = given.float()
        if not given.isfinite().all():
            raise UserError("embeddings that are not finite (NaN or infinite) have no features")
        return given

    def decode(self, activations: Tensor, modality: Modality) -> Tensor:
        """Embeddings `[n, dim]`, not normalised, of activations `[n, features]`.

        Raises:
            UserError: the activations are of another size, or there is no such modality.
        """
        if activations.ndim != 2 or activations.shape[1] != len(self):
            raise UserError(
                f"activations {list(activations.shape)}: the FeatureSpace has [n, {len(self)}]"
            )
        return self.dictionary.decode(activations.to(self.device), modality)

    def mean_active(self, modality: Modality) -> Tensor:
        """Each feature's mean activation where it is active, in the modality, or where it never is,
        in the other: `[features]`; 0 for a feature that is never active."""
        first, second = ("image", "text") if modality == "image" else ("text", "image")
        own, other = (
            np.nan_to_num(self.features[f"{m}_mean_active"].to_numpy()) for m in (first, second)
        )
        return torch.from_numpy(np.where(own > 0, own, other)).float()

    def select(
        self,
        modality_class: str | None = None,
        *,
        name: str | None = None,
        min_mds: float | None = None,
        max_mds: float | None = None,
        rule: Rule = "relative",
        certain: bool = False,
        shared: bool | None = None,
    ) -> Tensor:
        """Numbers of the features that meet all conditions: `[selected]` int64, ascending.

        Args:
            modality_class: ImgD, TextD, CrossD or unscored.
            name: words that stand in the feature's name, whatever the case.
            min_mds: least MDS; with a bound on MDS, unscored features are out.
            max_mds: greatest MDS.
            rule: of the classes, "relative" or "fixed".
            certain: leave out features whose interval crosses a bound of their class (or, with
                `shared`, the floor of their agreement).
            shared: True for features that images and texts drive in the same pairs (agreement above
                its floor), False for the other scored ones.

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
            words = normalised(name)
            chosen &= [holds(normalised(n), words) for n in self._column("name")]
        if min_mds is not None:
            chosen &= self._column("mds") >= min_mds
        if max_mds is not None:
            chosen &= self._column("mds") <= max_mds
        if certain:
            chosen &= ~self._column("uncertain" + suffix)
        if shared is not None:
            chosen &= np.isfinite(self._column("agreement"))
            chosen &= self._column("shared") == shared
            if certain:
                chosen &= ~self._column("uncertain_shared")
        return torch.from_numpy(np.flatnonzero(chosen))

    def save(self, folder: str | Path) -> Path:
        """Write the FeatureSpace; one that is there already is replaced.

        Raises:
            UserError: `folder` holds something else.
        """
        folder = Path(folder)
        require_replaceable(folder)
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.dictionary.save_weights(temporary / WEIGHTS)
        pq.write_table(self.features, temporary / FEATURES, compression="zstd")
        pq.write_table(self.exemplars, temporary / EXEMPLARS, compression="zstd")
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
            where: a folder, one of `features.embedded.SPACE_NAMES`, or a Hugging Face hub id
                (org/name).
            device: "auto" is this process's GPU where there is one.
            encoder: to use instead of the one that is recorded, which it must equal; wanted where
                that one came from a folder that has moved.

        Raises:
            UserError: there is none, its schema is another, its dictionary or tables are damaged
                or not of one another, or the encoder is the wrong one.
        """
        folder = _find(where)
        record = read_json(folder / "config.json")
        if "dictionary" not in record or not isinstance(record.get("schema"), int):
            raise UserError(f"{where}: its config.json is not that of a FeatureSpace")
        if record["schema"] != SCHEMA:
            age = "an older" if record["schema"] < SCHEMA else "a newer"
            raise UserError(
                f"{where}: a FeatureSpace of {age} version (schema {record['schema']}, this one "
                f"reads {SCHEMA}); "
                + (
                    "score its dictionary again: mms score --store STORE --dictionary "
                    f"{where} --out FOLDER"
                    if record["schema"] < SCHEMA
                    else "install a newer version of mms-apps"
                )
            )
        known = {f.name for f in dataclasses.fields(SpaceConfig)}
        dictionary = dictionary_from_record(
            record["dictionary"], folder / WEIGHTS, record["dictionary_fingerprint"]
        )
        return cls(
            SpaceConfig(**{key: value for key, value in record.items() if key in known}),
            dictionary,
            *read_tables(folder, dictionary.config.features),
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
        if not same_encoder(encoder.fingerprint, self.config.encoder_fingerprint):
            raise UserError(
                f"{encoder.id}: its weights, preprocessing or tokenizer are not those of "
                f"{self.config.encoder}, to which these features belong; give the right encoder "
                "or score this one's features"
            )
        return encoder


def require_replaceable(folder: str | Path) -> None:
    """Raise a UserError where something else than a FeatureSpace lies."""
    if Path(folder).exists() and not _replaceable(Path(folder)):
        raise UserError(f"{folder}: exists and is no FeatureSpace; name another folder")


def _replaceable(folder: Path) -> bool:
    """Whether the folder is empty or holds a FeatureSpace."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        record = read_json(folder / "config.json")
    except (OSError, UserError):
        return False
    return "dictionary" in record and "classes" in record


def _find(where: str | Path) -> Path:
    """The local folder of a FeatureSpace, downloaded where it is on the hub.

    Raises:
        UserError: there is none.
    """
    folder = SPACES / str(where) if str(where) in SPACE_NAMES else Path(where)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(str(where)):
        raise UserError(
            f"{where}: no FeatureSpace here (no config.json); "
            + part_within(
                folder,
                "space",
                f"give its folder, a hub id (org/name) or one of {', '.join(SPACE_NAMES)}",
            )
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(where)))
    except Exception as error:  # huggingface_hub and its client each raise their own
        raise UserError(
            f"{where}: no such folder, and the hub has no such model or cannot be reached "
            f"({first_line(error)}); check the name and the network"
        ) from error
