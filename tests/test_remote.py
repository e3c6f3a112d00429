"""Webdataset shards behind URLs, from a server on this machine."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from features import remote
from features.encoder import load_encoder
from features.errors import UserError
from features.extract import extract
from features.pairs import Pair, open_pairs
from features.store import ActivationStore
from tests.conftest import launch

SHARDS = 3


class Handler(BaseHTTPRequestHandler):
    """Serves a folder, with ranges; `broken` says what fails, `asked` what was asked for."""

    folder: Path
    asked: list[str]
    broken: dict[str, int]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        ranged = self.headers.get("Range")
        self.asked.append(path if ranged is None else f"{path} {ranged}")
        file = self.folder / path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        content = whole = file.read_bytes()
        self.send_response(206 if ranged else 200)
        if ranged:
            first, last = (int(number) for number in ranged.removeprefix("bytes=").split("-"))
            content = whole[first : last + 1]
            end = first + len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(whole)}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if not ranged and self.broken.get(path, 0):
            self.broken[path] -= 1
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def do_HEAD(self) -> None:
        file = self.folder / self.path.lstrip("/")
        self.send_response(200 if file.is_file() else 404)
        self.send_header("Content-Length", str(file.stat().st_size if file.is_file() else 0))
        self.send_header("ETag", '"1"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Serving", (Handler,), {"folder": folder, "asked": [], "broken": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def shards(imagefolder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `bucket` of three shards of four pairs each."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "bucket").mkdir()
    records = [json.loads(line) for line in (imagefolder / "metadata.jsonl").open()]
    for shard in range(SHARDS):
        with tarfile.open(folder / "bucket" / f"pairs-{shard}.tar", "w") as tar:
            for index in range(4 * shard, 4 * shard + 4):
                image = (imagefolder / records[index]["file_name"]).read_bytes()
                for name, content in ((f"{index}.png", image), (f"{index}.txt", b"a drawing")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0, 0, 0))


def test_shards_behind_urls_are_the_local_ones(shards: Path) -> None:
    local = open_pairs(f"{shards}/bucket/pairs-{{0..2}}.tar")
    with serving(shards) as (address, server):
        there = open_pairs(f"{address}/bucket/pairs-{{0..2}}.tar?signature=x")
        assert there.name == local.name == "pairs-{0..2}.tar"
        assert there.parts() == local.parts()
        assert there.fingerprint() == local.fingerprint()
        assert all(asked.endswith("bytes=0-65535") for asked in server.asked)
        for part in local.parts():
            ours, theirs = list(local.read(part)), list(there.read(part))
            assert len(theirs) == 4 and ours == theirs
        assert set(there.images(["pairs-1.tar/5"])) == {"pairs-1.tar/5"}


def test_a_cut_download_is_tried_again_and_a_missing_one_named(shards: Path) -> None:
    with serving(shards) as (address, server):
        source = open_pairs(f"{address}/bucket/pairs-0.tar")
        server.broken["/bucket/pairs-0.tar"] = 2
        pairs = list(source.read(source.parts()[0]))
        assert all(isinstance(pair, Pair) for pair in pairs) and len(pairs) == 4
        assert server.asked == ["/bucket/pairs-0.tar"] * 3
        server.broken["/bucket/pairs-0.tar"] = 4
        with pytest.raises(UserError, match="bytes came"):
            list(source.read(source.parts()[0]))
        with pytest.raises(UserError, match="404"):
            open_pairs(f"{address}/bucket/none.tar").fingerprint()
        with pytest.raises(UserError, match=r"only \.tar files"):
            open_pairs(f"{address}/bucket/pairs.csv")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_broken_connection_cut_off_goes_on(
    shards: Path, clip_folder: Path, tmp_path: Path, workers: int
) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    with serving(shards) as (address, server):
        source = open_pairs(f"{address}/bucket/pairs-{{0..2}}.tar")
        server.broken["/bucket/pairs-1.tar"] = 4
        with pytest.raises(UserError, match="run the same command again") as stopped:
            extract(source, encoder, tmp_path / "s", workers=workers, progress=False)
        assert "Traceback" not in str(stopped.value)
        store = extract(source, encoder, tmp_path / "s", workers=workers, progress=False)
        assert len(store) == 12 and store.config.skipped == 0


def test_each_process_downloads_its_own_shards(
    shards: Path, clip_folder: Path, tmp_path: Path
) -> None:
    with serving(shards) as (address, server):
        options = ["--pairs", f"{address}/bucket/pairs-{{0..2}}.tar", "--workers", "0"]
        options += ["--encoder", f"local-dir:{clip_folder}", "--out", tmp_path / "two"]
        launch(2, "-m", "mms_apps.cli", "extract", *options)
        whole = [asked for asked in server.asked if "Range" not in asked and " " not in asked]
        assert sorted(whole) == [f"/bucket/pairs-{shard}.tar" for shard in range(SHARDS)]
    store = ActivationStore.open(tmp_path / "two")
    assert store.samples()["id"].to_pylist() == [str(index) for index in range(12)]


def test_s3(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    local = open_pairs(f"{shards}/bucket/pairs-{{0..2}}.tar")
    with serving(shards) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        there = open_pairs("s3://bucket/pairs-{0..2}.tar")
        assert there.fingerprint() == local.fingerprint()
        for part in local.parts():
            assert list(there.read(part)) == list(local.read(part))
        with pytest.raises(UserError, match="check the bucket"):
            open_pairs("s3://bucket/none.tar").fingerprint()


def test_s3_without_boto3_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(UserError, match=r"mms-apps\[s3\]"):
        open_pairs("s3://bucket/a.tar").fingerprint()
