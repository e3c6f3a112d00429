"""The FeatureSpace: scoring a store, selecting, encoding, and what is kept on disk."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import features
from features.dictionary import (
    Dictionary,
    DictionaryConfig,
    TopKDictionary,
    TrainConfig,
    load_dictionary,
)
from features.dictionary.identity import IdentityDictionary
from features.dictionary.trainer import new_dictionary
from features.encoders.load import load_encoder
from features.errors import UserError
from features.modality import MODALITIES, Modality
from features.pairs.base import Found, PairSource, Part, Skipped
from features.space import score as score_module
from features.space.score import score
from features.space.space import FeatureSpace
from features.space.tables import EXEMPLAR_SCHEMA, FEATURE_COLUMNS
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store

PAIRS, DIM = 120, 16
COLOURS = ("red", "green", "blue", "yellow")


class ColouredSquares(PairSource):
    """Pictures by location; the last one is lost."""

    name = "squares"

    def parts(self) -> list[Part]:
        return []

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        return iter(())

    def total(self) -> int:
        return PAIRS

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        for location in locations:
            if int(location) < PAIRS - 1:
                yield location, Image.new("RGB", (100, 60), COLOURS[int(location) % 4])

    def fingerprint(self) -> str:
        return "squares"


def embeddings(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dimension 0 is driven by images only, 1 by texts only, 2 to 5 by the colour."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (0.05 * torch.randn(PAIRS, DIM, generator=generator) for _ in range(2))
    image[:, 0] += torch.rand(PAIRS, generator=generator)
    text[:, 1] += torch.rand(PAIRS, generator=generator)
    for pair in range(PAIRS):
        image[pair, 2 + pair % 4] += 1
        text[pair, 2 + pair % 4] += 1
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


def make_store(path: Path, *, encoder: str = "tiny", seed: int = 0, first_id: int = 0):  # type: ignore[no-untyped-def]
    image, text = embeddings(seed)
    captions = [[f"the {COLOURS[i % 4]} one"] for i in range(PAIRS)]
    ids = [str(first_id + i) for i in range(PAIRS)]
    config = StoreConfig(encoder, f"print of {encoder}", "squares", "pairs-print", DIM)
    return write_store(path, image, text, sample_table(ids, captions), config, shard_rows=50)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_store(tmp_path_factory.mktemp("stores") / "judge", encoder="judge", seed=1)


def axes(encoder_fingerprint: str = "print of tiny") -> Dictionary:
    """A TopK dictionary whose features are the positive coordinates."""
    config = DictionaryConfig(
        "topk",
        dim=DIM,
        features=DIM,
        k=3,
        modality_bias=False,
        encoder="tiny",
        encoder_fingerprint=encoder_fingerprint,
    )
    dictionary = TopKDictionary(config)
    with torch.no_grad():
        dictionary.decoder.copy_(torch.eye(DIM))
        dictionary.encoder.copy_(torch.eye(DIM))
    return dictionary.requires_grad_(False)


@pytest.fixture(scope="module")
def space(store: ActivationStore, judge: ActivationStore) -> FeatureSpace:
    return score(store, axes(), judge, ColouredSquares(), batch_size=32, progress=False)


def column(space: FeatureSpace, name: str) -> list:
    return space.features[name].to_pylist()


def test_planted_modalities_come_out(space: FeatureSpace) -> None:
    mds = column(space, "mds")
    assert mds[0] > 0.9 and mds[1] < 0.1
    assert all(0.4 < value < 0.6 for value in mds[2:6])
    assert column(space, "class_fixed")[:6] == ["ImgD", "TextD", *["CrossD"] * 4]
    assert space.features.column_names == list(FEATURE_COLUMNS)
    assert space.exemplars.schema == EXEMPLAR_SCHEMA


def test_agreement_stands_beside_the_score(space: FeatureSpace) -> None:
    agreement, low, high = (column(space, f"agreement{end}") for end in ("", "_low", "_high"))
    floor = column(space, "agreement_floor")
    for feature in range(2, 6):  # a colour activates images and texts of the same pairs
        assert low[feature] > 0.7 > floor[feature] and agreement[feature] <= high[feature]
    assert agreement[0] < 0.5  # images alone drive it
    assert column(space, "shared")[2:6] == [True] * 4
    counts = space.config.classes["fixed"]
    assert counts["shared"] == sum(
        shared and name == "CrossD"
        for shared, name in zip(column(space, "shared"), column(space, "class_fixed"), strict=True)
    )
    assert 0 < space.config.floors["agreement"] < 0.7  # type: ignore[operator]


def test_features_are_named_by_their_colour(space: FeatureSpace) -> None:
    assert column(space, "name")[2:6] == list(COLOURS)
    floor = space.config.floors["ms_cross"]
    assert floor is not None and column(space, "ms_cross")[2] > floor + 0.3
    assert column(space, "embsim_image")[2] > space.config.floors["embsim_image"]


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_the_batch_size_changes_nothing(
    space: FeatureSpace, store: ActivationStore, judge: ActivationStore, batch_size: int
) -> None:
    again = score(store, axes(), judge, batch_size=batch_size, progress=False)
    for name in FEATURE_COLUMNS:
        left, right = space.features[name].to_numpy(), again.features[name].to_numpy()
        if left.dtype.kind == "f":
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            assert left.tolist() == right.tolist(), name


def test_config_names_the_judge(space: FeatureSpace, store: ActivationStore) -> None:
    assert (space.config.judge, space.config.judge_independent) == ("judge", True)
    alone = score(store, axes(), progress=False)
    assert (alone.config.judge, alone.config.judge_independent) == ("tiny", False)
    assert sum(space.config.classes["relative"]["counts"].values()) == DIM
    assert space.config.classes["fixed"]["low"] == pytest.approx(1 / 3)


def test_exemplars(space: FeatureSpace, store: ActivationStore) -> None:
    image, text = (torch.cat(rows) for rows in zip(*store.batches(50), strict=True))
    z = {"image": axes().encode(image, "image"), "text": axes().encode(text, "text")}
    rows = space.exemplars.to_pylist()
    for modality in ("image", "text"):
        mine = [r for r in rows if r["feature"] == 2 and r["modality"] == modality]
        order = z[modality][:, 2].argsort(descending=True)[:8].tolist()
        assert [r["rank"] for r in mine] == list(range(8))
        assert [int(r["sample_id"]) for r in mine] == order
        assert all(r["caption"] == "the red one" for r in mine)
        assert mine[0]["activation"] == pytest.approx(float(z[modality][:, 2].max()))
    assert all(r["thumbnail"] is None for r in rows if r["modality"] == "text")
    for row in rows:
        if row["modality"] == "image":
            assert (row["thumbnail"] is None) == (row["sample_id"] == str(PAIRS - 1))
            if row["thumbnail"]:
                assert Image.open(io.BytesIO(row["thumbnail"])).size == (96, 58)


def test_identity_scores_by_magnitude(store: ActivationStore) -> None:
    config = DictionaryConfig("identity", dim=DIM, features=DIM, k=DIM, modality_bias=False)
    space = score(store, IdentityDictionary(config), progress=False)
    image, text = (torch.cat(rows).abs() for rows in zip(*store.batches(50), strict=True))
    expected = (image / (image + text)).mean(0)
    np.testing.assert_allclose(column(space, "mds"), expected, rtol=1e-5)
    assert min(space.exemplars["activation"].to_pylist()) >= 0


def test_select(space: FeatureSpace) -> None:
    assert space.select("ImgD", rule="fixed").tolist()[0] == 0
    assert space.select(name="Red").tolist() == [
        i for i, name in enumerate(column(space, "name")) if "red" in name.split(", ")
    ]
    assert space.select(name="re").tolist() == []
    mds = np.array(column(space, "mds"))
    assert space.select(min_mds=0.4, max_mds=0.6).tolist() == [
        i for i in range(DIM) if 0.4 <= mds[i] <= 0.6
    ]
    certain = space.select("CrossD", rule="fixed", certain=True)
    assert certain.dtype == torch.int64
    assert not np.array(column(space, "uncertain_fixed"))[certain].any()
    assert len(space.select()) == DIM
    shared = space.select(shared=True)
    assert {2, 3, 4, 5} <= set(shared.tolist())
    assert not {0, 1} & set(shared.tolist())
    unscored = set(space.select("unscored").tolist())
    assert set(space.select(shared=False).tolist()) == set(range(DIM)) - set(shared.tolist()) - (
        unscored
    )
    assert set(space.select(shared=True, certain=True).tolist()) <= set(shared.tolist())
    with pytest.raises(UserError, match="unknown class"):
        space.select("image")
    with pytest.raises(UserError, match="relative or fixed"):
        space.select("ImgD", rule="other")  # type: ignore[arg-type]


def test_saves_and_loads(space: FeatureSpace, tmp_path: Path) -> None:
    folder = space.save(tmp_path / "space")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["space"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "dictionary.safetensors",
        "exemplars.parquet",
        "features.parquet",
    ]
    loaded = FeatureSpace.load(folder)
    assert loaded.config == space.config
    assert loaded.exemplars.equals(space.exemplars)
    assert len(loaded) == DIM
    x = embeddings(3)[0]
    assert torch.equal(loaded.encode_images(x).cpu(), space.encode_images(x))
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert "CrossD" in (folder / "README.md").read_text()
    json.loads((folder / "config.json").read_text(), parse_constant=pytest.fail)  # no NaN
    loaded.save(folder)  # replaces
    assert features.load_dictionary(folder).config == loaded.dictionary.config


def test_save_keeps_other_folders(space: FeatureSpace, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no FeatureSpace"):
        space.save(tmp_path)
    assert (tmp_path / "notes.txt").exists()


def test_load_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        FeatureSpace.load(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": 1}')
    with pytest.raises(UserError, match="not that of a FeatureSpace"):
        FeatureSpace.load(tmp_path)
    for schema, hint in ((2, "older version.*mms score"), (99, "newer version.*install")):
        record = {"schema": schema, "dictionary": {}}
        (tmp_path / "config.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=hint):
            FeatureSpace.load(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _offline)
    with pytest.raises(UserError, match="no such folder"):
        FeatureSpace.load("nobody/nothing")


def _rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("features", lambda t: t.slice(0, 3), "its rows are not features 0 to"),
        ("features", lambda t: t.take(list(range(len(t)))[::-1]), "its rows are not features 0 to"),
        ("features", lambda t: t.drop(["mds_low"]), "lacks the column mds_low"),
        ("exemplars", lambda t: t.drop(["caption"]), "lacks the column caption"),
    ],
)
def test_tables_of_other_features_are_refused(
    space: FeatureSpace,
    tmp_path: Path,
    name: str,
    change: Callable[[pa.Table], pa.Table],
    message: str,
) -> None:
    folder = space.save(tmp_path / "space")
    _rewritten(folder / f"{name}.parquet", change)
    with pytest.raises(UserError, match=rf"{name}\.parquet: {message}"):
        FeatureSpace.load(folder)


@pytest.mark.parametrize("name", ["features.parquet", "exemplars.parquet"])
def test_tables_that_are_missing_or_damaged_are_named(
    space: FeatureSpace, tmp_path: Path, name: str
) -> None:
    folder = space.save(tmp_path / "space")
    (folder / name).write_bytes((folder / name).read_bytes()[:40])
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        FeatureSpace.load(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(there is no such file"):
        FeatureSpace.load(folder)


def test_another_dictionary_is_refused(space: FeatureSpace, tmp_path: Path) -> None:
    space.save(tmp_path / "space")
    torch.manual_seed(1)
    other = new_dictionary_like(space)
    other.save_weights(tmp_path / "space" / "dictionary.safetensors")
    for load in (FeatureSpace.load, load_dictionary):
        with pytest.raises(UserError, match="damaged or another dictionary's"):
            load(tmp_path / "space")


def new_dictionary_like(space: FeatureSpace) -> Dictionary:
    other = copy.deepcopy(space.dictionary)
    for tensor in other.state_dict().values():
        tensor += torch.randn_like(tensor) / 100
    return other


def _offline(*_: object, **__: object) -> str:
    raise OSError("offline")


def test_pushing_uploads_a_whole_space(
    space: FeatureSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded = {}

    class Hub:
        def create_repo(self, repo_id: str, **_: object) -> None: ...

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
            uploaded[repo_id] = FeatureSpace.load(folder_path).config

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    space.push_to_hub("me/space")
    assert uploaded == {"me/space": space.config}
    monkeypatch.setattr(Hub, "create_repo", _offline)
    with pytest.raises(UserError, match="cannot be uploaded"):
        space.push_to_hub("me/space")


def test_gradients_flow_back_to_embeddings(space: FeatureSpace) -> None:
    x = embeddings(0)[0][:4].requires_grad_()
    space.encode_images(x)[:, 2].sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_encodes_images_and_texts(
    clip_folder: Path, store: ActivationStore, tmp_path: Path
) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    config = dataclasses.replace(
        store.config, encoder=encoder.id, encoder_fingerprint=encoder.fingerprint
    )
    own = ActivationStore(store.path, config)
    scored = score(own, axes(encoder.fingerprint), progress=False)
    given = FeatureSpace(
        scored.config, scored.dictionary, scored.features, scored.exemplars, encoder=encoder
    )
    images = [Image.new("RGB", (32, 32), colour) for colour in COLOURS]
    z = given.encode_images(images)
    torch.testing.assert_close(z, given.encode_images(encoder.encode_images(images)))
    assert given.encode_texts(["a red circle"]).shape == (1, DIM)
    assert given.encode_images([]).shape == (0, DIM)
    array = np.asarray(images[0])
    for one in (array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        torch.testing.assert_close(given.encode_images(one), z[:1])
    batch = np.stack([np.asarray(image) for image in images])
    torch.testing.assert_close(given.encode_images(batch), z)
    torch.testing.assert_close(given.encode_images(torch.from_numpy(batch).permute(0, 3, 1, 2)), z)
    with pytest.raises(UserError, match="text 299 is None"):
        given.encode_texts(["a"] * 299 + [None])  # type: ignore[list-item]
    assert given.decode(z, "image").shape == (4, DIM)
    picture = tmp_path / "red.png"
    images[0].save(picture)
    for alone in (images[0], str(picture), picture):
        torch.testing.assert_close(given.encode_images(alone), z[:1])
    words = given.encode_texts("a red circle")
    torch.testing.assert_close(words, given.encode_texts(["a red circle"]))
    torch.testing.assert_close(encoder.encode_images(images[0]), encoder.encode_images(images[:1]))
    torch.testing.assert_close(encoder.encode_texts("a cat"), encoder.encode_texts(["a cat"]))


def test_embeddings_may_be_an_array_of_any_length(space: FeatureSpace) -> None:
    x = embeddings(0)[0][:4]
    torch.testing.assert_close(space.encode(3 * x.numpy(), "text"), space.encode(x, "text"))


@pytest.mark.parametrize("modality", MODALITIES)
def test_arrays_in_any_order_of_bytes_and_rows_are_embeddings(
    space: FeatureSpace, modality: Modality
) -> None:
    x = embeddings(0)[0][:4]
    expected = space.encode(x, modality)
    array = x.numpy()
    read_only = array.copy()
    read_only.flags.writeable = False
    for form in (
        array.astype(">f4"),
        array.astype(">f8"),
        np.asfortranarray(array),
        np.ascontiguousarray(array[::-1])[::-1],
        read_only,
    ):
        torch.testing.assert_close(space.encode(form, modality), expected)


@pytest.mark.parametrize(
    ("given", "modality", "message"),
    [
        (torch.zeros(2, DIM), "audio", "modality audio: use image or text"),
        (torch.ones(DIM), "image", rf"embeddings \[{DIM}\]: the FeatureSpace takes \[n, {DIM}\]"),
        (np.ones((2, 3)), "text", r"embeddings \[2, 3\]"),
        (np.ones(DIM), "image", rf"embeddings \[{DIM}\]"),
        (np.ones((2, 3, DIM)), "text", rf"embeddings \[2, 3, {DIM}\]"),
        ([None], "text", "text 0 is None"),
        (torch.full((1, DIM), torch.nan), "image", "not finite"),
    ],
)
def test_what_has_no_features_is_said(
    space: FeatureSpace, given: Any, modality: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        space.encode(given, modality)


def test_what_cannot_be_decoded_is_said(space: FeatureSpace) -> None:
    with pytest.raises(UserError, match=r"activations \[2, 3\]: the FeatureSpace has \[n, "):
        space.decode(torch.zeros(2, 3), "text")
    with pytest.raises(UserError, match="modality audio: use image or text"):
        space.decode(torch.zeros(2, len(space)), "audio")  # type: ignore[arg-type]


def test_another_encoder_is_refused(space: FeatureSpace, clip_folder: Path) -> None:
    wrong = f"local-dir:{clip_folder}"
    parts = (space.config, space.dictionary, space.features, space.exemplars)
    with pytest.raises(UserError, match="not those of tiny"):
        FeatureSpace(*parts, encoder=load_encoder(wrong, device="cpu"))
    lazy = FeatureSpace(*parts, encoder=wrong)
    with pytest.raises(UserError, match="not those of tiny"):
        lazy.encode_texts(["a red circle"])


def test_inputs_must_belong_together(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fit one on this store"):
        score(store, axes("another print"), progress=False)
    other = make_store(tmp_path / "other", encoder="judge", first_id=1)
    with pytest.raises(UserError, match="row by row"):
        score(store, axes(), other, progress=False)


def test_without_a_source_there_are_no_thumbnails(store: ActivationStore) -> None:
    space = score(store, axes(), progress=False)
    assert space.exemplars["thumbnail"].null_count == len(space.exemplars)


def test_dead_features_are_unscored_and_unnamed(store: ActivationStore) -> None:
    dictionary = new_dictionary(store, TrainConfig(features=64, k=1))
    with torch.no_grad():
        dictionary.get_parameter("encoder_bias")[:10] = -100
    space = score(store, dictionary, progress=False)
    assert column(space, "class")[:10] == ["unscored"] * 10
    assert column(space, "name")[:10] == [""] * 10
    assert space.config.dead >= 10 / 64
    assert isinstance(space.features, pa.Table)


def test_names_of_the_package_are_lazy() -> None:
    assert features.FeatureSpace is FeatureSpace
    assert features.score is score_module.score
    assert "open_pairs" in dir(features)
    with pytest.raises(AttributeError):
        features.nothing  # noqa: B018
