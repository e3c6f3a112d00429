import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.errors import UserError
from features.pairs.base import PairSource
from features.pairs.open import open_pairs
from features.pairs.tables import FilePairs
from features.store.extract import default_workers, extract, resolve_precision
from features.store.store import ActivationStore, shard_name
from tests.conftest import draw_imagefolder, launch, save_tiny_clip, start

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
import time
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
import features.pairs.open
features.pairs.base.PART_RECORDS = features.pairs.delimited.PART_RECORDS = 8
from features.encoders.load import load_encoder
from features.store.extract import extract

if __name__ == "__main__":
    pairs, encoder, out, delay = sys.argv[1:]
    encoder = load_encoder(encoder)
    encode = encoder.encode_image_tensors
    def slow(pixels):
        time.sleep(float(delay))
        return encode(pixels)
    encoder.encode_image_tensors = slow
    source = features.pairs.open.open_pairs(pairs)
    extract(source, encoder, out, batch_size=4, workers=1, progress=False)
"""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("base", "delimited", "parquet"):
        monkeypatch.setattr(f"features.pairs.{module}.PART_RECORDS", 8)


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> Encoder:
    return load_encoder(f"local-dir:{clip_folder}", "cpu")


@pytest.fixture
def source(imagefolder: Path, small_parts: None) -> PairSource:
    return open_pairs(str(imagefolder))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "run.py"
    path.write_text(SCRIPT.format(root=str(ROOT)))
    return path


def everything(store: ActivationStore) -> tuple[torch.Tensor, torch.Tensor]:
    return next(store.batches(1000))


def same(one: ActivationStore, two: ActivationStore) -> None:
    assert one.samples().equals(two.samples())
    assert one.config.shards == two.config.shards
    for a, b in zip(everything(one), everything(two), strict=True):
        assert (a - b).abs().max() <= 1e-3


def test_rows_are_the_encoders_embeddings(source, encoder, tmp_path) -> None:
    store = extract(source, encoder, tmp_path / "s", workers=0, batch_size=3, progress=False)
    pairs = [pair for part in source.parts() for pair in source.read(part)]
    image, text = everything(store)
    expected = encoder.encode_images([pair.image for pair in pairs])
    assert torch.allclose(image, expected, atol=1e-3)
    for row, pair in zip(text, pairs, strict=True):
        mean = encoder.encode_texts(pair.captions).mean(0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-3)
    assert store.samples()["id"].to_pylist() == [pair.id for pair in pairs]
    assert store.samples()["attribute.shape"].to_pylist() == [
        pair.attributes["shape"] for pair in pairs
    ]
    assert store.config.encoder == "local-dir:tiny"
    assert store.config.pairs == "shapes"
    assert "/" not in store.config.encoder
    assert sorted(file.name for file in (tmp_path / "s").iterdir()) == [
        "config.json",
        "samples.parquet",
        *(shard_name(index) for index in range(5)),
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(source, encoder, tmp_path, workers: int) -> None:
    options = {"batch_size": 4, "progress": False}
    same(
        extract(source, encoder, tmp_path / "a", workers=0, **options),
        extract(source, encoder, tmp_path / "b", workers=workers, **options),
    )


def test_two_processes_give_the_same_store(
    source, encoder, imagefolder, clip_folder, script, tmp_path
) -> None:
    launch(2, script, imagefolder, f"local-dir:{clip_folder}", tmp_path / "two", "0")
    one = extract(source, encoder, tmp_path / "one", workers=0, batch_size=4, progress=False)
    same(one, ActivationStore.open(tmp_path / "two"))


def test_two_processes_go_on_from_any_kill(
    source, encoder, imagefolder, clip_folder, script, tmp_path
) -> None:
    """The launcher is killed when the folder appears, and amid the shards: the processes end with
    it, and the next start goes on."""
    out = tmp_path / "two"
    arguments = (script, imagefolder, f"local-dir:{clip_folder}", out)
    for moment in (out, out / shard_name(1)):
        launcher = start(2, *arguments, "0.3")
        deadline = time.monotonic() + 120
        while not moment.exists() and launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        ranks = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        launcher.communicate()
        _, left = psutil.wait_procs(ranks, timeout=20)
        assert moment.exists() and not left
        with pytest.raises(UserError):
            ActivationStore.open(out)
    launch(2, *arguments, "0")
    one = extract(source, encoder, tmp_path / "one", workers=0, batch_size=4, progress=False)
    same(one, ActivationStore.open(out))
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("left", [[], ["extraction.json.tmp"]])
def test_what_a_kill_at_the_start_leaves_is_no_hindrance(source, encoder, tmp_path, left) -> None:
    (tmp_path / "s").mkdir()
    for name in left:
        (tmp_path / "s" / name).write_text('{"schema"')
    store = extract(source, encoder, tmp_path / "s", workers=0, progress=False)
    assert len(store) == 40 and not list(store.path.glob("*.tmp"))


def test_a_damaged_beginning_is_a_user_error(source, encoder, tmp_path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "extraction.json").write_text("")
    with pytest.raises(UserError, match=r"extraction\.json: damaged"):
        extract(source, encoder, tmp_path / "s", workers=0, progress=False)


def test_an_extraction_of_0_1_0_is_not_gone_on_with(source, encoder, tmp_path) -> None:
    store = extract(source, encoder, tmp_path / "s", workers=0, progress=False)
    config = store.path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"schema": 1}))
    with pytest.raises(UserError, match=r"version 0\.1\.0.*extract again"):
        extract(source, encoder, tmp_path / "s", workers=0, progress=False)


def test_killed_half_way_it_goes_on(
    source, encoder, imagefolder, clip_folder, script, tmp_path
) -> None:
    out = tmp_path / "s"
    arguments = [script, imagefolder, f"local-dir:{clip_folder}", out, "0.3"]
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (out / shard_name(1)).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {file: file.stat() for file in out.glob("shard-*.safetensors")}
    assert 2 <= len(done) < 5
    with pytest.raises(UserError, match="unfinished"):
        ActivationStore.open(out)
    store = extract(source, encoder, out, workers=0, batch_size=4, progress=False)
    for file, before in done.items():
        after = file.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    whole = extract(source, encoder, tmp_path / "w", workers=0, batch_size=4, progress=False)
    same(whole, store)


@pytest.mark.parametrize("name", ["samples.parquet", "config.json", "part-00000.parquet"])
def test_killed_at_the_end_it_completes(source, encoder, tmp_path, monkeypatch, name: str) -> None:
    """Where the file `name` would be put in place, or removed, the run dies."""

    class Killed(BaseException):
        pass

    def dies(function):
        def wrapped(first, *rest, **options):
            if name in (Path(first).name, *(Path(path).name for path in rest)):
                raise Killed
            return function(first, *rest, **options)

        return wrapped

    with monkeypatch.context() as patch:
        if name.startswith("part"):
            patch.setattr(Path, "unlink", dies(Path.unlink))
        else:
            patch.setattr("features.store.write.os.replace", dies(os.replace))
        with pytest.raises(Killed):
            extract(source, encoder, tmp_path / "s", workers=0, progress=False)
    store = extract(source, encoder, tmp_path / "s", workers=0, progress=False)
    assert len(store) == 40
    left = {file.name for file in (tmp_path / "s").iterdir()}
    assert left == {"config.json", "samples.parquet", *(shard_name(i) for i in range(5))}


def test_a_finished_store_returns_at_once(source, encoder, tmp_path, monkeypatch) -> None:
    first = extract(source, encoder, tmp_path / "s", workers=0, progress=False)
    monkeypatch.setattr(FilePairs, "read", lambda *_: pytest.fail("read again"))
    again = extract(source, encoder, tmp_path / "s", workers=0, progress=False)
    assert again.fingerprint == first.fingerprint


def test_a_finished_store_with_a_shard_missing_is_refused(source, encoder, tmp_path) -> None:
    store = extract(source, encoder, tmp_path / "store", progress=False)
    shard = store.path / shard_name(1)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: missing"):
        extract(source, encoder, store.path, progress=False)


@pytest.mark.parametrize("left", [None, 100])
def test_an_unfinished_store_that_lost_a_shard_makes_it_again(
    source, encoder, tmp_path, monkeypatch, left: int | None
) -> None:
    whole = extract(source, encoder, tmp_path / "whole", progress=False)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("features.store.extract.finish_store", killed)
        extract(source, encoder, tmp_path / "store", progress=False)
    shard = tmp_path / "store" / shard_name(1)
    content = shard.read_bytes()
    shard.unlink()
    if left is not None:
        shard.write_bytes(content[:left])
    same(extract(source, encoder, tmp_path / "store", progress=False), whole)


def test_other_settings_are_refused(source, encoder, tmp_path) -> None:
    out = tmp_path / "s"
    extract(source, encoder, out, workers=0, progress=False)
    with pytest.raises(UserError, match=r"another precision \(fp32, now bf16\)"):
        extract(source, encoder, out, workers=0, precision="bf16", progress=False)
    other = load_encoder(f"local-dir:{save_tiny_clip(tmp_path / 'tiny-2', seed=5)}", "cpu")
    with pytest.raises(UserError, match="another encoder"):
        extract(source, other, out, workers=0, progress=False)
    pairs = open_pairs(str(draw_imagefolder(tmp_path / "few", 9)))
    with pytest.raises(UserError, match="another pairs"):
        extract(pairs, encoder, out, workers=0, progress=False)
    config = out / "config.json"
    config.rename(out / "extraction.json")
    with pytest.raises(UserError, match="another pairs"):
        extract(pairs, encoder, out, workers=0, progress=False)


def test_a_folder_of_something_else_is_left_alone(source, encoder, tmp_path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="no activation store"):
        extract(source, encoder, tmp_path, workers=0, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_bad_pairs_are_skipped_and_counted(imagefolder, encoder, tmp_path) -> None:
    folder = tmp_path / "pairs"
    shutil.copytree(imagefolder, folder)
    for index in (3, *range(8, 16)):  # the second part has no pair at all
        image = folder / f"images/{index:04d}.png"
        image.write_bytes(image.read_bytes()[:-40])
    (folder / "images/0020.png").unlink()
    source = open_pairs(str(folder))
    store = extract(source, encoder, tmp_path / "s", workers=1, progress=False)
    assert len(store) == 30
    assert store.config.shards == (7, 0, 7, 8, 8)
    assert store.config.skipped_reasons == {
        "missing image file": 1,
        "truncated image or damaged": 9,
    }
    skipped = [json.loads(line) for line in (tmp_path / "s/skipped.jsonl").open()]
    assert [record["id"] for record in skipped][:2] == ["images/0003.png", "images/0008.png"]
    assert "images/0003.png" not in store.samples()["id"].to_pylist()
    with pytest.raises(UserError, match="10 pairs were skipped"):
        extract(source, encoder, tmp_path / "s", workers=0, strict=True, progress=False)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"images/0003.png: truncated image"):
            extract(source, encoder, tmp_path / "t", workers=workers, strict=True, progress=False)


def test_precision(encoder, source, tmp_path) -> None:
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(UserError, match="fp32, bf16, fp16"):
        resolve_precision("fp8", torch.device("cpu"))
    half = extract(source, encoder, tmp_path / "h", workers=0, precision="bf16", progress=False)
    full = extract(source, encoder, tmp_path / "f", workers=0, progress=False)
    cosine = torch.cosine_similarity(everything(half)[0], everything(full)[0])
    assert cosine.min() > 0.99
    assert half.config.precision == "bf16"
    assert half.fingerprint != full.fingerprint


def test_too_little_memory_names_the_batch_size(encoder, source, tmp_path, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(encoder, "encode_image_tensors", fails)
    with pytest.raises(UserError, match=r"memory of cpu \(CUDA out of memory.*--batch-size"):
        extract(source, encoder, tmp_path / "store", workers=0, progress=False)


def test_default_workers(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(32), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [default_workers(gpu, n) for n in (1, 4, 64)] == [8, 4, 1]
    assert [default_workers(cpu, n) for n in (1, 4, 64)] == [8, 2, 0]
