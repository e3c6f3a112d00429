import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from features.errors import UserError
from features.pairs.base import Skipped
from features.store.content import content_key
from features.store.store import ActivationStore, StoreConfig, same_pairs, shard_name
from features.store.write import finish_store, part_finished, sample_table, write_part, write_store
from features.store.writer import StoreWriter

DIM = 6
CONFIG = StoreConfig("tiny", "e" * 64, "drawn", "p" * 64, DIM)


def embeddings(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row i of both starts with i (exact in fp16 up to 2048)."""
    image = torch.randn(n, DIM, generator=torch.Generator().manual_seed(n))
    image[:, 0] = torch.arange(n)
    return image, -image


def unit(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1)


def make(path: Path, n: int, shard_rows: int | None = None) -> ActivationStore:
    ids = [str(i) for i in range(n)]
    captions = [[f"caption {i}"] for i in range(n)]
    attributes = [{"parity": str(i % 2)} if i % 3 else {"third": None} for i in range(n)]
    table = sample_table(ids, captions, attributes=attributes)
    rows = shard_rows or n
    path.mkdir()
    for index, start in enumerate(range(0, n, rows)):
        shard = slice(start, start + rows)
        image, text = (each[shard] for each in embeddings(n))
        write_part(path, index, image, text, table[shard], [])
    finish_store(path, CONFIG, -(-n // rows))
    return ActivationStore.open(path)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 90), shard=st.integers(1, 40), batch=st.integers(1, 50))
def test_batches_cover_shards_in_order(tmp_path_factory, n: int, shard: int, batch: int) -> None:
    store = make(tmp_path_factory.mktemp("store") / "s", n, shard)
    images, texts = zip(*store.batches(batch), strict=True)
    assert all(len(image) == batch for image in images[:-1])
    assert torch.equal(torch.cat(images), embeddings(n)[0].half().float())
    assert torch.equal(torch.cat(texts), embeddings(n)[1].half().float())


@pytest.mark.parametrize("buffer", [512, 65_536])
def test_shuffled_batches_give_every_pair_once(tmp_path, monkeypatch, buffer: int) -> None:
    monkeypatch.setattr("features.store.store.SHUFFLE_BUFFER", buffer)
    store = make(tmp_path / "s", 1500, 700)
    batches = list(store.shuffled_batches(64, torch.Generator().manual_seed(3)))
    assert [len(image) for image, _ in batches] == [64] * 23 + [28]
    order = torch.cat([image for image, _ in batches])[:, 0]
    assert torch.equal(order.sort().values, torch.arange(1500.0))
    assert not torch.equal(order, torch.arange(1500.0))
    assert all(torch.equal(image, -text) for image, text in batches)
    again = next(store.shuffled_batches(64, torch.Generator().manual_seed(3)))[0]
    other = next(store.shuffled_batches(64, torch.Generator().manual_seed(4)))[0]
    assert torch.equal(again, batches[0][0])
    assert not torch.equal(other, again)


def test_rows_come_in_the_order_asked(tmp_path) -> None:
    store = make(tmp_path / "s", 50, 7)
    image, text = store.rows([49, 0, 13, 13])
    assert image[:, 0].tolist() == [49, 0, 13, 13]
    assert torch.equal(text, -image)
    assert len(store.rows(torch.tensor([], dtype=torch.long))[0]) == 0
    with pytest.raises(IndexError):
        store.rows([50])


def test_samples_are_aligned_and_keep_attributes(tmp_path) -> None:
    table = make(tmp_path / "s", 50, 7).samples()
    assert table["id"].to_pylist() == [str(i) for i in range(50)]
    assert table["captions"][4].as_py() == ["caption 4"]
    assert table["attribute.parity"].to_pylist()[3:6] == [None, "0", "1"]


def test_fingerprint_follows_the_embeddings_not_the_place(tmp_path) -> None:
    one, two = make(tmp_path / "a", 20), make(tmp_path / "b", 20)
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != make(tmp_path / "c", 21).fingerprint


def test_files_are_plain_safetensors(tmp_path) -> None:
    make(tmp_path / "s", 20, 8)
    tensors = load_file(tmp_path / "s" / shard_name(2))
    assert tensors["image"].dtype == torch.float16
    assert tensors["text"].shape == (4, DIM)
    config = (tmp_path / "s/config.json").read_text()
    assert json.loads(config)["shards"] == [8, 8, 4]
    assert str(tmp_path) not in config


def test_parts_with_different_attributes_and_none_at_all_merge(tmp_path) -> None:
    bad = Skipped("x", "x.png", "truncated image: cut")
    one = sample_table(["a"], [["a"]], attributes=[{"colour": "red"}])
    two = sample_table(["b"], [["b"]], attributes=[{"shape": "square"}])
    ones, none = torch.ones(1, DIM), torch.empty(0, DIM)
    write_part(tmp_path, 0, ones, ones, one, [])
    write_part(tmp_path, 1, none, none, sample_table([], []), [bad])
    write_part(tmp_path, 2, 2 * ones, ones, two, [bad])
    assert part_finished(tmp_path, 1) and not part_finished(tmp_path, 3)
    finish_store(tmp_path, CONFIG, 3)
    store = ActivationStore.open(tmp_path)
    assert store.config.shards == (1, 0, 1)
    assert store.config.skipped_reasons == {"truncated image": 2}
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 2
    assert store.samples()["attribute.colour"].to_pylist() == ["red", None]
    assert store.samples()["attribute.shape"].to_pylist() == [None, "square"]
    assert store.rows([1])[0][0, 0] == 2
    assert torch.cat([image for image, _ in store.batches(5)])[:, 0].tolist() == [1, 2]
    assert not list(tmp_path.glob("part-*"))


def test_open_says_what_is_wrong(tmp_path) -> None:
    with pytest.raises(UserError, match="no activation store"):
        ActivationStore.open(tmp_path)
    (tmp_path / "extraction.json").write_text("{}")
    with pytest.raises(UserError, match="unfinished"):
        ActivationStore.open(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema"):
        ActivationStore.open(tmp_path)


def written(path: Path, image: torch.Tensor, text: torch.Tensor | None = None) -> ActivationStore:
    samples = sample_table([f"p{i}" for i in range(len(image))], [["a"]] * len(image))
    return write_store(path, image, image if text is None else text, samples, CONFIG)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
def test_unit_embeddings_are_written_as_they_are(tmp_path, dtype, recwarn) -> None:
    x = unit(9).to(dtype)
    x = x if dtype != torch.bfloat16 else torch.eye(DIM, dtype=dtype)
    store = written(tmp_path / "s", x)
    assert torch.equal(store.rows(range(len(x)))[0], x.half().float())
    assert store.config.normalised == 0 and not recwarn.list


@pytest.mark.parametrize("scale", [10.0, 1e-6, 1e6, 1.01])
def test_other_lengths_are_normalised_and_said(tmp_path, scale: float) -> None:
    image, text = unit(20), unit(20, 1)
    given = image.clone()
    given[3:7] *= scale
    with pytest.warns(UserWarning, match="4 image and 20 text embeddings of 20 pairs"):
        store = written(tmp_path / "s", given, text * 100_000)
    rows = store.rows(range(20))
    assert (rows[0] - image).abs().max() < 1e-3 and (rows[1] - text).abs().max() < 1e-3
    assert store.config.normalised == 24


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("what", ["image", "text"])
def test_rows_that_are_not_finite_are_refused(tmp_path, bad: float, what: str) -> None:
    both = {"image": unit(50), "text": unit(50)}
    both[what][[13, 40], 2] = bad
    with pytest.raises(UserError, match=f"{what} embeddings: row 13 "):
        written(tmp_path / "s", both["image"], both["text"])
    half = {name: each.clone() for name, each in both.items()}
    with pytest.raises(UserError, match="row 13 of shard 2"):
        write_part(tmp_path, 2, half["image"], half["text"], sample_table([], []), [])
    assert list(tmp_path.iterdir()) == []


def test_only_texts_that_are_not_there_may_be_zero(tmp_path) -> None:
    image, text = unit(4), unit(4)
    text[2] = 0
    with pytest.raises(UserError, match="text embeddings: row 2 is zero"):
        written(tmp_path / "s", image, text)
    with pytest.raises(UserError, match="image embeddings: row 2 is zero"):
        written(tmp_path / "s", text, image)
    samples = sample_table(list("abcd"), [["a"], ["b"], [], ["d"]])
    store = write_store(tmp_path / "s", image, text, samples, CONFIG)
    assert store.config.uncaptioned == 1 and store.rows([2])[1].abs().sum() == 0


@pytest.mark.parametrize(
    ("image", "text", "samples", "match"),
    [
        ((2, DIM), (2, DIM), 1, "1 samples"),
        ((2, DIM), (3, DIM), 2, r"\[n, 6\]"),
        ((2, DIM + 1), (2, DIM + 1), 2, "config's dim"),
        ((2, DIM), (2, DIM + 1), 2, "config's dim"),
        ((DIM,), (DIM,), DIM, "config's dim"),
        ((2, DIM, 1), (2, DIM, 1), 2, "config's dim"),
        ((0, DIM), (0, DIM), 0, "at least one pair"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, image, text, samples, match) -> None:
    table = sample_table([str(i) for i in range(samples)], [["a"]] * samples)
    with pytest.raises(UserError, match=match):
        write_store(tmp_path / "s", torch.ones(image), torch.ones(text), table, CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.numpy(),
        lambda x: x.tolist(),
        lambda x: x.numpy().astype(">f4"),
        lambda x: x.double().numpy(),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: x.numpy()[::-1].copy()[::-1],
        lambda x: x.numpy().astype(object).astype(np.float16),
    ],
)
def test_arrays_and_lists_are_written_as_tensors_are(tmp_path: Path, form: Callable) -> None:
    samples = sample_table(list("abc"), [["a"]] * 3)
    expected = written(tmp_path / "t", unit(3), -unit(3)).rows(range(3))
    store = write_store(tmp_path / "s", form(unit(3)), form(-unit(3)), samples, CONFIG)
    writer = StoreWriter(tmp_path / "w", CONFIG)
    writer.write(form(unit(3)), form(-unit(3)), samples)
    for found in (store.rows(range(3)), writer.finish().rows(range(3))):
        for side in (0, 1):
            torch.testing.assert_close(found[side], expected[side], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([["a"] * DIM], "image embeddings are a list that is no array of numbers"),
        ([[1.0], [1.0, 2.0]], "image embeddings are a list that is no array of numbers"),
        (None, "image embeddings are a NoneType that is no array of numbers"),
        (unit(1).numpy().astype(object), "no array of numbers"),
        (unit(1).to_sparse(), "its to_dense"),
        (unit(1).numpy() > 0, "torch.bool is no type of embeddings"),
    ],
)
def test_what_is_no_array_of_numbers_is_said(tmp_path: Path, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_store(tmp_path / "s", image, unit(1), sample_table(["a"], [["a"]]), CONFIG)


@pytest.mark.parametrize("samples", [{"id": ["a"]}, [{"id": "a"}]])
def test_samples_that_are_no_table_are_said(tmp_path: Path, samples: Any) -> None:
    with pytest.raises(UserError, match="make them with sample_table"):
        write_store(tmp_path / "s", unit(1), unit(1), samples, CONFIG)


NAN = float("nan")


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["a dog", "a cat"], [["a dog"], ["a cat"]]),
        (np.array(["a dog", "a cat"]), [["a dog"], ["a cat"]]),
        (np.array([["a dog"], ["a cat"]]), [["a dog"], ["a cat"]]),
        (pa.array([["a dog"], ["a cat", "b"]]), [["a dog"], ["a cat", "b"]]),
        (iter([("a dog",), {"a cat": 1}.keys()]), [["a dog"], ["a cat"]]),
        ([None, "a cat"], [[], ["a cat"]]),
        ([NAN, np.float32(NAN)], [[], []]),
        ([[NAN, "a dog", None], ["", "a cat"]], [["a dog"], ["", "a cat"]]),
        ([3, [np.int64(4)]], [["3"], ["4"]]),
    ],
)
def test_captions_are_texts(captions: Any, expected: list[list[str]]) -> None:
    table = sample_table(["1", "2"], captions)
    assert table["captions"].to_pylist() == expected
    assert table["caption"].to_pylist() == [own[0] if own else None for own in expected]


@pytest.mark.parametrize(
    "ids", [[1, 2], np.array([1, 2]), [1.0, 2.0], pa.array(["1", "2"]), (n for n in "12")]
)
def test_ids_and_attributes_may_be_numbers(ids: Any) -> None:
    attributes = [{"age": 3, "big": True, 7: "x"}, {"age": NAN, "big": None}]
    [first, second] = sample_table(ids, ["a", "b"], attributes=attributes).to_pylist()
    assert (first["id"], first["location"], second["id"]) == ("1", "1", "2")
    assert [first[f"attribute.{name}"] for name in ("age", "big", "7")] == ["3", "true", "x"]
    assert second["attribute.age"] is second["attribute.big"] is second["attribute.7"] is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ids": ["1"]}, "1 ids, 2 of caption"),
        ({"locations": ["x"]}, "2 ids, 1 of location"),
        ({"contents": ["x"] * 3}, "2 ids, 3 of content"),
        ({"attributes": [{"age": "3"}]}, "2 ids, 1 of attribute.age"),
        ({"attributes": {"age": [3, 4]}}, "attributes 0 are 'age'; give a dictionary"),
        ({"attributes": [{"age": [3]}, {}]}, r"age 0 is \[3\], a list"),
        ({"captions": [[["a"]], ["b"]]}, r"pair 0: caption 0 is \['a'\], a list; give text"),
        ({"captions": ["a", {"raw": "b"}]}, "pair 1: caption 0 is"),
        ({"ids": ["1", None]}, "id 1 is missing"),
        ({"ids": [NAN, "2"]}, "id 0 is missing"),
        ({"ids": [["1"], "2"]}, "id 0 is .*; give text"),
    ],
)
def test_what_makes_no_samples_is_said(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_table(**{"ids": ["1", "2"], "captions": [["a"], ["b"]]} | wrong)


def test_write_store_wants_its_own_columns_types_and_folder(tmp_path) -> None:
    table = sample_table(["a"], [["a"]])
    with pytest.raises(UserError, match="no column captions"):
        write_store(tmp_path / "s", unit(1), unit(1), table.drop(["captions"]), CONFIG)
    with pytest.raises(UserError, match="complex"):
        write_store(tmp_path / "s", unit(1).cfloat(), unit(1).cfloat(), table, CONFIG)
    with pytest.raises(UserError, match="at least 1"):
        write_store(tmp_path / "s", unit(1), unit(1), table, CONFIG, shard_rows=0)
    written(tmp_path / "s", unit(3))
    with pytest.raises(UserError, match="exists"):
        written(tmp_path / "s", unit(3))


def keyed(path: Path, ids: str, contents: list[str] | None) -> ActivationStore:
    samples = sample_table(list(ids), [["a"]] * len(ids), contents=contents)
    return write_store(path, unit(len(ids)), unit(len(ids)), samples, CONFIG)


def test_pairs_are_the_same_where_their_content_is(tmp_path) -> None:
    one = keyed(tmp_path / "one", "abc", ["1", "2", "3"])
    renamed = keyed(tmp_path / "renamed", "xyz", ["1", "2", "3"])
    other = keyed(tmp_path / "other", "abc", ["1", "2", "4"])
    turned = keyed(tmp_path / "turned", "abc", ["2", "1", "3"])
    assert same_pairs(one, renamed)
    assert not same_pairs(one, other) and not same_pairs(one, turned)
    without = keyed(tmp_path / "without", "abc", None)
    assert same_pairs(one, without) and same_pairs(without, one)
    assert not same_pairs(renamed, without)
    assert not same_pairs(one, keyed(tmp_path / "short", "ab", ["1", "2"]))


def test_stores_of_0_1_0_are_read(tmp_path) -> None:
    path = keyed(tmp_path / "s", "abc", None).path
    record = json.loads((path / "config.json").read_text()) | {"schema": 1}
    for name in ("captions_cut", "normalised", "uncaptioned"):
        del record[name]
    (path / "config.json").write_text(json.dumps(record))
    assert len(ActivationStore.open(path)) == 3
    (path / "config.json").write_text(json.dumps(record)[:-9])
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        ActivationStore.open(path)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda image, captions: (image.copy(), tuple(captions)), True),
        (lambda image, captions: (image.rotate(90), captions), False),
        (lambda image, captions: (image.resize((8, 32)), captions), False),
        (lambda image, captions: (image, ["a", "b c"]), False),
        (lambda image, captions: (image, ["a b", "c"][::-1]), False),
        (lambda image, captions: (image, ["a b"]), False),
        (lambda image, captions: (image, []), False),
    ],
)
def test_content_is_the_pixels_and_the_captions(change, same: bool) -> None:
    image = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    captions = ["a b", "c"]
    assert (content_key(*change(image, captions)) == content_key(image, captions)) == same


@pytest.mark.parametrize("left", [0, 5, 40, 300])
def test_a_shard_that_is_cut_off_is_named(tmp_path, left: int) -> None:
    store = make(tmp_path / "s", 20, 10)
    shard = tmp_path / "s" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(UserError, match=r"shard-00001\.safetensors: damaged or cut off"):
        ActivationStore.open(store.path)


def test_a_store_that_was_copied_in_part_is_not_opened_and_the_file_is_named(tmp_path) -> None:
    store = make(tmp_path / "s", 20, 10)
    make(tmp_path / "other", 10, 5)

    def refused(change: Callable[[Path], object], name: str, why: str) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(store.path, copy)
        change(copy / name)
        with pytest.raises(UserError, match=f"{name}: {why}.*copy the store again"):
            ActivationStore.open(copy)

    shard, samples = "shard-00001.safetensors", "samples.parquet"
    refused(Path.unlink, shard, "missing")
    refused(lambda p: p.write_bytes(p.read_bytes()[:-1]), shard, "damaged or cut off")
    refused(lambda p: p.write_bytes((tmp_path / "other" / shard).read_bytes()), shard, "holds")
    refused(Path.unlink, samples, "missing")
    refused(lambda p: p.write_bytes(p.read_bytes()[:-1]), samples, "damaged or cut off")
    refused(
        lambda p: p.write_bytes((tmp_path / "other" / samples).read_bytes()), samples, "10 samples"
    )
