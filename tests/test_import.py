"""Stores from embeddings of others: every layout, bad files, and going on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from features.encoders.load import load_encoder
from features.errors import UserError
from features.pairs.open import open_pairs
from features.space.space import FeatureSpace
from features.store.extract import extract
from features.store.import_embeddings import import_embeddings
from features.store.layouts import open_embeddings
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store
from features.store.writer import StoreWriter

DIM = 6
ROWS = (40, 23, 30)


def unit(rows: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def sides(number: int) -> tuple[np.ndarray, np.ndarray]:
    return unit(ROWS[number], number), unit(ROWS[number], 100 + number)


def table(number: int, **more: Any) -> pa.Table:
    rows = range(ROWS[number])
    columns = {
        "uid": [f"pair {number}.{row}" for row in rows],
        "url": [f"https://host/{row}.jpg" for row in rows],
        "text": [f"a caption, {row}" for row in rows],
        "width": [100.0 + row if row else None for row in rows],
    }
    return pa.table(columns | more)


def lists(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), DIM)


def clip_retrieval(root: Path) -> dict[str, Any]:
    """Numbers go to 10, so that names sorted as text are in another order."""
    for number, name in enumerate((0, 2, 10)):
        image, text = sides(number)
        for kind, array in (("img_emb", image), ("text_emb", text)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            np.save(root / kind / f"{kind}_{name}.npy", array.astype(np.float16))
        (root / "metadata").mkdir(exist_ok=True)
        pq.write_table(table(number), root / "metadata" / f"metadata_{name}.parquet")
    return {"source": root}


def datacomp(root: Path, save: Callable[..., None] = np.savez) -> dict[str, Any]:
    for number in range(3):
        image, text = (array.astype(np.float16) for array in sides(number))
        save(root / f"{number}.npz", b32_img=text, b32_txt=image, l14_img=image, l14_txt=text)
        pq.write_table(table(number), root / f"{number}.parquet")
    return {"source": root}


def datacomp_squeezed(root: Path) -> dict[str, Any]:
    (root / "metadata").mkdir()
    return datacomp(root / "metadata", np.savez_compressed) | {"source": root}


def one_parquet(root: Path) -> dict[str, Any]:
    whole = []
    for number in range(3):
        image, text = sides(number)
        vectors = {"image_embedding": image.tolist(), "text_embedding": lists(text)}
        whole.append(table(number, **vectors).cast(table(number, **vectors).schema))
    pq.write_table(pa.concat_tables(whole), root / "all.parquet", row_group_size=17)
    return {"source": root / "all.parquet"}


def parquets_apart(root: Path) -> dict[str, Any]:
    for number in range(3):
        for kind, array in zip(("i", "t"), sides(number), strict=True):
            pq.write_table(pa.table({"vector": lists(array)}), root / f"{kind}{number}.parquet")
        pq.write_table(table(number), root / f"m{number}.parquet", row_group_size=7)
    return {name: root / f"{name[0]}*.parquet" for name in ("images", "texts", "metadata")}


def tensors(root: Path) -> dict[str, Any]:
    for number, kind in enumerate((torch.float32, torch.float16, torch.float64)):
        image, text = (torch.from_numpy(array).to(kind) for array in sides(number))
        save_file({"text": text, "image": image}, root / f"{number}.safetensors")
        pq.write_table(table(number), root / f"{number}.parquet")
    return {"source": root}


def arrays_apart(root: Path) -> dict[str, Any]:
    """Big-endian numbers on one side."""
    for number in range(3):
        image, text = sides(number)
        np.save(root / f"i{number}.npy", image.astype(">f4"))
        save_file({"what": torch.from_numpy(text)}, root / f"t{number}.safetensors")
        pq.write_table(table(number), root / f"m{number}.parquet")
    return {
        "images": root / "i*.npy",
        "texts": root / "t*.safetensors",
        "metadata": root / "m*.parquet",
    }


LAYOUTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    layout.__name__: layout
    for layout in (
        clip_retrieval,
        datacomp,
        datacomp_squeezed,
        one_parquet,
        parquets_apart,
        tensors,
        arrays_apart,
    )
}


def imported(out: Path, source: dict[str, Any], **options: Any) -> ActivationStore:
    return import_embeddings(open_embeddings(**source), out, progress=False, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "others").mkdir()
    return tmp_path / "others"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_store(root: Path, tmp_path: Path, layout: str) -> None:
    store = imported(tmp_path / "s", LAYOUTS[layout](root), shard_rows=25)
    assert store.config.shards == (25, 25, 25, 18)
    image, text = (torch.from_numpy(np.concatenate(x)) for x in zip(*map(sides, range(3))))  # noqa: B905
    found = store.rows(range(len(store)))
    assert (found[0] - image).abs().max() < 1e-3 and (found[1] - text).abs().max() < 1e-3
    samples = store.samples().to_pylist()
    names = [f"pair {number}.{row}" for number in range(3) for row in range(ROWS[number])]
    assert [sample["id"] for sample in samples] == names
    assert samples[41] == {
        "id": "pair 1.1",
        "caption": "a caption, 1",
        "captions": ["a caption, 1"],
        "location": "https://host/1.jpg",
        "attribute.width": "101",
    }
    assert samples[40]["attribute.width"] is None
    assert store.config.precision == "imported" and store.config.uncaptioned == 0
    assert str(root) not in (tmp_path / "s" / "config.json").read_text()


def test_bfloat16_and_key_are_read(root: Path, tmp_path: Path) -> None:
    image, text = (torch.from_numpy(array).bfloat16() for array in sides(0))
    save_file({"a": image, "b": text, "c": text[:5].clone()}, root / "x.safetensors")
    source = {"source": root, "image_key": "a", "text_key": "b"}
    store = imported(tmp_path / "s", source)
    expected = torch.nn.functional.normalize(image.float())
    assert (store.rows(range(40))[0] - expected).abs().max() < 5e-3
    with pytest.raises(UserError, match=r"several.*a, b, c.*--image-key"):
        open_embeddings(root)
    with pytest.raises(UserError, match=r"no embeddings 'd'; there are a, b, c"):
        open_embeddings(root, image_key="d", text_key="b")
    with pytest.raises(UserError, match=r"a has 40 rows.*c has 5"):
        open_embeddings(root, image_key="a", text_key="c")


@pytest.mark.parametrize("after", [0, 1, 24, 25, 26, 62, 91])
@pytest.mark.parametrize("layout", ["clip_retrieval", "one_parquet", "datacomp_squeezed"])
def test_killed_it_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, after: int
) -> None:
    """Longer rows are counted once, whatever was read twice."""
    monkeypatch.setattr("features.store.import_embeddings.BATCH", 7)
    source = LAYOUTS[layout](root)
    whole = imported(tmp_path / "whole", source, shard_rows=25)

    class Killed(BaseException):
        pass

    write = StoreWriter.write

    def dies(self: StoreWriter, *arguments: Any) -> None:
        if self.rows >= after:
            raise Killed
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", dies)
        with pytest.raises(Killed):
            imported(tmp_path / "s", source, shard_rows=25)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("shard-*")}
    assert len(kept) == min(3, -(-after // 7) * 7 // 25)
    store = imported(tmp_path / "s", source, shard_rows=25)
    assert store.fingerprint == whole.fingerprint
    assert store.config.normalised == whole.config.normalised
    assert store.samples().equals(whole.samples())
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    again = imported(tmp_path / "s", source, shard_rows=25)
    assert again.fingerprint == store.fingerprint


def test_another_source_is_refused(root: Path, tmp_path: Path) -> None:
    source = clip_retrieval(root)
    imported(tmp_path / "s", source)
    np.save(root / "img_emb" / "img_emb_2.npy", unit(ROWS[1], 5))
    with pytest.raises(UserError, match="another pairs"):
        imported(tmp_path / "s", source)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("kind", "side"), [("img_emb", 0), ("text_emb", 1)])
def test_a_bad_row_is_named_with_its_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, kind: str, side: int
) -> None:
    monkeypatch.setattr("features.store.import_embeddings.BATCH", 7)
    source = clip_retrieval(root)
    array = sides(1)[side].copy()
    array[17, 3] = value
    np.save(root / kind / f"{kind}_2.npy", array)
    with pytest.raises(UserError, match=rf"{kind}/{kind}_2.npy: row 17 holds NaN or infinity"):
        imported(tmp_path / "s", source)


def test_a_zero_text_is_refused_where_there_is_a_caption(root: Path, tmp_path: Path) -> None:
    image, text = (array.copy() for array in sides(0))
    text[5] = 0
    np.savez(root / "x.npz", image=image, text=text)
    store = imported(tmp_path / "s", {"source": root / "x.npz"})
    assert store.config.uncaptioned == 1
    assert store.samples()["caption"].to_pylist()[4:6] == ["", None]
    pq.write_table(table(0), root / "x.parquet")
    with pytest.raises(UserError, match=r"x\.npz: row 5 is zero"):
        imported(tmp_path / "t", {"source": root / "x.npz"})


def test_other_lengths_are_normalised_and_said(root: Path, tmp_path: Path, mms: Callable) -> None:
    image, text = (array.copy() for array in sides(0))
    image[3:7] *= 10
    np.savez(root / "x.npz", image=image, text=text * 1e-3)
    code, out, err = mms("import", root / "x.npz", "--out", tmp_path / "s")
    assert code == 0 and "40 pairs of 6 dimensions" in out and "44 embeddings" in err
    store = ActivationStore.open(tmp_path / "s")
    assert store.config.normalised == 44
    assert (store.rows(range(40))[0] - torch.from_numpy(sides(0)[0])).abs().max() < 1e-3


def no_text_side(root: Path) -> dict[str, Any]:
    source = clip_retrieval(root)
    for path in (root / "text_emb").iterdir():
        path.unlink()
    return source


def a_number_missing(root: Path) -> dict[str, Any]:
    source = clip_retrieval(root)
    (root / "metadata" / "metadata_2.parquet").unlink()
    return source


def fewer_rows(root: Path) -> dict[str, Any]:
    source = clip_retrieval(root)
    np.save(root / "text_emb" / "text_emb_10.npy", unit(29, 0))
    return source


def a_shorter_table(root: Path) -> dict[str, Any]:
    source = clip_retrieval(root)
    pq.write_table(table(0)[:7], root / "metadata" / "metadata_0.parquet")
    return source


def other_dimensions(root: Path) -> dict[str, Any]:
    source = datacomp(root)
    one = np.ones((3, DIM + 1), np.float16)
    np.savez(root / "9.npz", l14_img=one, l14_txt=one)
    return source


def cut_off(root: Path) -> dict[str, Any]:
    source = clip_retrieval(root)
    path = root / "img_emb" / "img_emb_0.npy"
    path.write_bytes(path.read_bytes()[:-2])
    return source


def pickled(root: Path) -> dict[str, Any]:
    source = clip_retrieval(root)
    np.save(root / "img_emb" / "img_emb_0.npy", np.array([[1, "a"]], object), allow_pickle=True)
    return source


def no_numpy(root: Path) -> dict[str, Any]:
    source = clip_retrieval(root)
    (root / "img_emb" / "img_emb_0.npy").write_text("hello")
    return source


def no_zip(root: Path) -> dict[str, Any]:
    source = datacomp(root)
    (root / "1.npz").write_text("hello")
    return source


def no_parquet(root: Path) -> dict[str, Any]:
    source = parquets_apart(root)
    (root / "m1.parquet").write_text("hello")
    return source


def no_header(root: Path) -> dict[str, Any]:
    (root / "x.safetensors").write_bytes(b"\xff" * 30)
    return {"source": root}


def fewer_files(root: Path) -> dict[str, Any]:
    source = parquets_apart(root)
    (root / "t1.parquet").unlink()
    return source


def fewer_tables(root: Path) -> dict[str, Any]:
    source = parquets_apart(root)
    (root / "m1.parquet").unlink()
    return source


def whole_numbers(root: Path) -> dict[str, Any]:
    np.savez(root / "x.npz", image=np.ones((2, 3), np.int8), text=np.ones((2, 3), np.int8))
    return {"source": root}


def by_columns(root: Path) -> dict[str, Any]:
    image, text = sides(0)
    np.savez(root / "x.npz", image=np.asfortranarray(image), text=text)
    return {"source": root}


def one_vector(root: Path) -> dict[str, Any]:
    np.savez(root / "x.npz", image=np.ones(3, np.float32), text=np.ones(3, np.float32))
    return {"source": root}


def lists_of_several_lengths(root: Path) -> dict[str, Any]:
    rows = [[1.0, 0.0]] * 20 + [[1.0]]
    pq.write_table(pa.table({"image": rows, "text": [[1.0, 0.0]] * 21}), root / "x.parquet")
    return {"source": root}


def a_missing_list(root: Path) -> dict[str, Any]:
    rows = [*[[1.0, 0.0]] * 20, None]
    pq.write_table(pa.table({"image": rows, "text": [[1.0, 0.0]] * 21}), root / "x.parquet")
    return {"source": root}


def a_missing_number(root: Path) -> dict[str, Any]:
    rows = [*[[1.0, 0.0]] * 20, [1.0, None]]
    pq.write_table(pa.table({"image": rows, "text": [[1.0, 0.0]] * 21}), root / "x.parquet")
    return {"source": root}


def nothing(root: Path) -> dict[str, Any]:
    return {"source": root}


def nowhere(root: Path) -> dict[str, Any]:
    return {"source": root / "nowhere"}


def half_a_source(root: Path) -> dict[str, Any]:
    return {"images": root}


def two_sources(root: Path) -> dict[str, Any]:
    return {"source": root, "images": root, "texts": root}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_text_side, "text_emb: no file numbered 0"),
        (a_number_missing, "metadata: no file numbered 2"),
        (fewer_rows, r"img_emb_10.npy has 30 rows, .*text_emb_10.npy has 29"),
        (a_shorter_table, r"img_emb_0.npy has 40 rows, .*metadata_0.parquet has 7"),
        (other_dimensions, r"0.npz l14_img has 6 dimensions, .*9.npz l14_img has 7"),
        (cut_off, "img_emb_0.npy: cut off"),
        (pickled, "img_emb_0.npy: .*holds object"),
        (no_numpy, "img_emb_0.npy: damaged"),
        (no_zip, "1.npz: damaged"),
        (no_parquet, "m1.parquet: damaged"),
        (no_header, "x.safetensors: damaged"),
        (fewer_files, "3 files, .*2"),
        (fewer_tables, "2 files for 3"),
        (whole_numbers, "int8, no floats"),
        (by_columns, "ascontiguousarray"),
        (one_vector, r"\[3\]; give \[rows, dim\]"),
        (lists_of_several_lengths, "row 20 of column image has not the 2 numbers"),
        (a_missing_list, "row 20 of column image has not the 2 numbers"),
        (a_missing_number, "row 20 of column image lacks a number"),
        (nothing, "no .npy"),
        (nowhere, "nowhere: no .npy"),
        (half_a_source, "name both"),
        (two_sources, "or --images and --texts"),
    ],
)
def test_what_does_not_fit_is_a_user_error(
    root: Path, tmp_path: Path, make: Callable[[Path], dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        imported(tmp_path / "s", make(root))
    assert not (tmp_path / "s" / "config.json").exists()


def files_apart(root: Path, folder: str, names: str) -> Path:
    """A folder of as many files as there are names, each with an ending."""
    (root / folder).mkdir()
    for name in names.split():
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"caption": ["a", "b"]}), root / folder / name)
        else:
            np.save(root / folder / name, unit(2, 0))
    return root / folder


@pytest.mark.parametrize(
    ("images", "texts", "lacks"),
    [
        ("part_0.npy part_1.npy part_2.npy", "part_0.npy part_2.npy part_3.npy", "part_1.npy"),
        ("image_0.npy image_1.npy", "text_1.npy text_2.npy", "image_0.npy"),
        ("b32_0.npy b32_1.npy", "l14_0.npy l14_2.npy", "b32_1.npy"),
        ("0-of-2.npy 1-of-2.npy", "00001-of-2.npy 00002-of-2.npy", "0-of-2.npy"),
        ("10.npy 11.npy", "20.npy 21.npy", "10.npy"),
        ("train.npy val.npy", "test.npy train.npy", "val.npy"),
        ("1.npy 2.npy", "one.npy two.npy", "1.npy"),
    ],
)
def test_files_of_other_numbers_are_not_paired(
    root: Path, images: str, texts: str, lacks: str
) -> None:
    one, two = files_apart(root, "im", images), files_apart(root, "tx", texts)
    with pytest.raises(UserError, match=f"tx: no file of the number or name of .*im/{lacks};"):
        open_embeddings(images=one, texts=two)
    tables = files_apart(root, "tables", texts.replace(".npy", ".parquet"))
    with pytest.raises(UserError, match=f"tables: no file of the number .*im/{lacks};"):
        open_embeddings(images=one, texts=one, text_key="other", metadata=tables)


@pytest.mark.parametrize("layout", ["clip_retrieval", "datacomp", "arrays_apart", "parquets_apart"])
def test_folders_are_called_as_people_do(root: Path, layout: str) -> None:
    parts = len(open_embeddings(**LAYOUTS[layout](root)).parts)
    odd = root.rename(root.parent / "others [v1] 100%")
    for folder in (odd, odd / "img_emb", odd / "text_emb"):
        if folder.is_dir():
            (folder / "._img_emb_7.npy").write_bytes(b"what macOS leaves")
    source = LAYOUTS[layout](odd) if layout.endswith("apart") else {"source": odd}
    assert len(open_embeddings(**source).parts) == parts


def test_files_of_one_number_are_not_paired(root: Path) -> None:
    one, two = files_apart(root, "im", "1.npy 01.npy"), files_apart(root, "tx", "1.npy 2.npy")
    with pytest.raises(UserError, match="tx: no file of the number"):
        open_embeddings(images=one, texts=two)


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        ("part_0.npy part_2.npy part_10.npy", "0000.npy 0002.npy 0010.npy"),
        ("b32_0.npy b32_1.npy", "text-l14-0.npy text-l14-1.npy"),
        ("img_train.npy img_train_extra.npy", "txt_train.npy txt_train_extra.npy"),
        ("0-of-2_im.npy 1-of-2_im.npy", "0-of-2.npy 1-of-2.npy"),
        ("train-0.npy train_x.npy", "train_0.npy train-x.npy"),
        ("clip_b32.npy", "bert768.npy"),
    ],
)
def test_files_are_paired_by_number_or_name(root: Path, images: str, texts: str) -> None:
    one, two = files_apart(root, "im", images), files_apart(root, "tx", texts)
    tables = files_apart(root, "tables", texts.replace(".npy", ".parquet"))
    parts = open_embeddings(images=one, texts=two, metadata=tables).parts
    found = {part.image.path.name: part.text.path.name for part in parts}
    assert found == dict(zip(images.split(), texts.split(), strict=True))
    assert [part.table.stem for part in parts if part.table] == [p.text.path.stem for p in parts]


def test_captions_of_another_column(root: Path, tmp_path: Path) -> None:
    source = datacomp(root)
    store = imported(tmp_path / "s", source, caption_column="url")
    assert store.samples()["caption"][0].as_py() == "https://host/0.jpg"
    with pytest.raises(UserError, match="no column 'name'"):
        imported(tmp_path / "t", source, caption_column="name")
    np.savez(root.parent / "x.npz", image=sides(0)[0], text=sides(0)[1])
    with pytest.raises(UserError, match="no table beside it"):
        imported(tmp_path / "u", {"source": root.parent / "x.npz"}, caption_column="name")


def test_from_files_to_a_space(root: Path, tmp_path: Path, mms: Callable) -> None:
    clip_retrieval(root)
    steps = [
        ("import", root, "--out", tmp_path / "s", "--encoder-name", "mine"),
        ("fit", "--store", tmp_path / "s", "--dictionary", "identity", "--out", tmp_path / "d"),
        ("score", "--store", tmp_path / "s", "--dictionary", tmp_path / "d"),
    ]
    for step in (*steps[:2], (*steps[2], "--out", tmp_path / "space")):
        code, _, err = mms(*step)
        assert code == 0, err
    space = FeatureSpace.load(tmp_path / "space", device="cpu")
    assert space.config.encoder == "mine" and space.config.pair_count == sum(ROWS)
    assert np.isfinite(space.features["mds"].to_numpy()).all()


def test_the_encoder_is_checked(
    root: Path, tmp_path: Path, clip_folder: Path, imagefolder: Path, mms: Callable
) -> None:
    """Embeddings that an encoder made go with it; those of another are refused."""
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    pairs = open_pairs(str(imagefolder))
    own = extract(pairs, encoder, tmp_path / "own", workers=0, progress=False)
    image, text = own.rows(range(40))
    np.savez(root / "x.npz", image=image.numpy(), text=text.numpy())
    pq.write_table(own.samples(), root / "x.parquet")
    options = ("--encoder", f"local-dir:{clip_folder}", "--device", "cpu")
    code, _, err = mms("import", root, "--out", tmp_path / "s", *options)
    assert code == 0, err
    store = ActivationStore.open(tmp_path / "s")
    assert store.config.encoder_fingerprint == encoder.fingerprint
    assert torch.equal(store.rows(range(40))[0], image)
    np.savez(root / "x.npz", image=image.numpy(), text=-text.numpy())
    code, _, err = mms("import", root, "--out", tmp_path / "t", *options)
    assert code == 2 and "not made by local-dir:tiny" in err
    code, _, err = mms(
        "import", clip_retrieval(root / "c")["source"], "--out", tmp_path / "u", *options
    )
    assert code == 2 and "6 dimensions, but local-dir:tiny makes 16" in err


def test_names_of_encoders_keep_stores_apart(root: Path, tmp_path: Path) -> None:
    source = clip_retrieval(root)
    names = ("unknown", "one", "two")
    stores = {name: imported(tmp_path / name, source, encoder=name) for name in names}
    assert len({store.config.encoder_fingerprint for store in stores.values()}) == 3
    np.save(root / "img_emb" / "img_emb_0.npy", unit(ROWS[0], 9))
    again = {name: imported(tmp_path / f"{name} 2", source, encoder=name) for name in names}
    same = [
        stores[name].config.encoder_fingerprint == again[name].config.encoder_fingerprint
        for name in names
    ]
    assert same == [False, True, True]


CONFIG = StoreConfig("tiny", "e" * 64, "drawn", "p" * 64, DIM)


@pytest.mark.parametrize("pieces", [[93], [1] * 93, [30, 33, 30], [90, 3]])
def test_pieces_make_the_store_of_the_whole(tmp_path: Path, pieces: list[int]) -> None:
    image, text = torch.from_numpy(unit(93, 0)), torch.from_numpy(unit(93, 1)) * 2
    attributes = [{"even" if row % 2 == 0 else "odd": "yes"} for row in range(93)]
    samples = sample_table([str(row) for row in range(93)], [["a"]] * 93, attributes=attributes)
    with pytest.warns(UserWarning, match="93 text"):
        whole = write_store(tmp_path / "whole", image, text, samples, CONFIG, shard_rows=20)
    writer = StoreWriter(tmp_path / "s", CONFIG, shard_rows=20)
    for start, count in zip(np.cumsum([0, *pieces[:-1]]).tolist(), pieces, strict=True):
        rows = slice(start, start + count)
        writer.write(image[rows], text[rows], samples[rows])
        assert writer.rows == start + count
    store = writer.finish()
    assert store.fingerprint == whole.fingerprint and store.config == whole.config
    assert store.samples().equals(whole.samples())


def test_a_writer_says_what_is_wrong(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", CONFIG)
    with pytest.raises(UserError, match="at least one pair"):
        writer.finish()
    samples = sample_table(list("ab"), [["a"], ["b"]])
    good = torch.from_numpy(unit(2, 0))
    with pytest.raises(UserError, match="config's dim"):
        writer.write(good[:, :3], good[:, :3], samples)
    writer.write(good, good, samples)
    bad = good.clone()
    bad[1, 0] = torch.nan
    with pytest.raises(UserError, match="text embeddings: row 3 holds NaN"):
        writer.write(good, bad, samples)
    with pytest.raises(UserError, match="unfinished"):
        ActivationStore.open(tmp_path / "s")
    with pytest.raises(UserError, match="another pairs"):
        StoreWriter(tmp_path / "s", StoreConfig("tiny", "e" * 64, "other", "q" * 64, DIM))
    with pytest.raises(UserError, match="at least 1"):
        StoreWriter(tmp_path / "t", CONFIG, shard_rows=0)
    assert len(writer.finish()) == 2
    assert StoreWriter(tmp_path / "s", CONFIG).finished


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.parquet"])
def test_one_array_is_not_both_sides(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, unit(5, 0))
    elif name == "x.npz":
        np.savez(path, embedding=unit(5, 0))
    else:
        pq.write_table(pa.table({"embedding": lists(unit(5, 0)), "caption": list("abcde")}), path)
    with pytest.raises(UserError, match="would be the embeddings of both images and texts"):
        open_embeddings(path)


def test_captions_in_another_format_are_asked_for_as_parquet(tmp_path: Path) -> None:
    for name in ("images.npy", "texts.npy"):
        np.save(tmp_path / name, unit(2, 0))
    (tmp_path / "captions.csv").write_text("caption\na\nb\n")
    with pytest.raises(UserError, match=r"captions.csv: .*read from .parquet"):
        open_embeddings(
            images=tmp_path / "images.npy",
            texts=tmp_path / "texts.npy",
            metadata=tmp_path / "captions.csv",
        )


def test_a_space_of_a_name_alone_asks_for_its_encoder(tmp_path: Path) -> None:
    from features.dictionary import TrainConfig, fit_dictionary
    from features.space.score import score

    files = open_embeddings(clip_retrieval(tmp_path / "laion")["source"])
    store = import_embeddings(files, tmp_path / "store", encoder="mine", progress=False)
    config = TrainConfig(features=8, k=2, steps=5)
    dictionary = fit_dictionary(store, config, tmp_path / "d", device="cpu", progress=False)
    score(store, dictionary, device="cpu", progress=False).save(tmp_path / "space")
    with pytest.raises(UserError, match=r"mine: unknown encoder.*give it as --encoder"):
        FeatureSpace.load(tmp_path / "space", device="cpu").encode_texts(["a"])
