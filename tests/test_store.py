import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from features.errors import UserError
from features.pairs.base import Skipped
from features.store.store import ActivationStore, StoreConfig, shard_name
from features.store.write import finish_store, part_finished, sample_table, write_part, write_store

DIM = 6
CONFIG = StoreConfig("tiny", "e" * 64, "drawn", "p" * 64, DIM)


def embeddings(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row i of both starts with i (exact in fp16 up to 2048)."""
    image = torch.randn(n, DIM, generator=torch.Generator().manual_seed(n))
    image[:, 0] = torch.arange(n)
    return image, -image


def make(path: Path, n: int, shard_rows: int | None = None) -> ActivationStore:
    ids = [str(i) for i in range(n)]
    captions = [[f"caption {i}"] for i in range(n)]
    attributes = [{"parity": str(i % 2)} if i % 3 else {"third": None} for i in range(n)]
    table = sample_table(ids, captions, attributes=attributes)
    return write_store(path, *embeddings(n), table, CONFIG, shard_rows=shard_rows)


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


def test_write_store_refuses_an_existing_folder_and_wrong_shapes(tmp_path) -> None:
    make(tmp_path / "s", 3)
    with pytest.raises(UserError, match="exists"):
        make(tmp_path / "s", 3)
    with pytest.raises(ValueError, match="dim"):
        write_store(tmp_path / "t", *embeddings(2), sample_table(["a"], [["a"]]), CONFIG)
