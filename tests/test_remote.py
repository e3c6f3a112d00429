"""Webdataset shards behind URLs, from a server on this machine."""

from __future__ import annotations

import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from features.encoders.load import load_encoder
from features.errors import UserError
from features.pairs import remote
from features.pairs.base import Pair
from features.pairs.open import open_pairs
from features.store.extract import extract
from tests.served import serving, write_shards


@pytest.fixture(scope="module")
def shards(imagefolder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("served"), imagefolder)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0, 0, 0))


def there_again(address: str) -> str:
    return f"{address}/bucket/pairs-{{0..2}}.tar?signature=y"


def test_shards_behind_urls_are_the_local_ones(shards: Path) -> None:
    local = open_pairs(f"{shards}/bucket/pairs-{{0..2}}.tar")
    with serving(shards) as (address, server):
        there = open_pairs(f"{address}/bucket/pairs-{{0..2}}.tar?signature=x")
        assert there.name == local.name == "pairs-{0..2}.tar"
        assert there.parts() == local.parts()
        assert there.fingerprint() == open_pairs(there_again(address)).fingerprint()
        assert all(asked.endswith("bytes=0-65535") for asked in server.asked)
        server.version = "2"
        assert there.fingerprint() != open_pairs(there_again(address)).fingerprint()
        for part in local.parts():
            ours, theirs = list(local.read(part)), list(there.read(part))
            assert len(theirs) == 4 and ours == theirs
        assert set(dict(there.images(["pairs-1.tar/5"]))) == {"pairs-1.tar/5"}


def test_attributes_are_not_looked_for_behind_urls(shards: Path) -> None:
    with pytest.raises(UserError, match="mood: "):
        open_pairs(f"{shards}/bucket/pairs-{{0..2}}.tar").require_attributes(["mood"])
    with serving(shards) as (address, server):
        open_pairs(there_again(address)).require_attributes(["mood"])
        assert server.asked == [], "each shard would be downloaded twice"


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


@pytest.mark.parametrize("name", ["a.tar", "a-{0..9}.tar", "a.csv"])
@pytest.mark.parametrize("user", ["ann:secret", "secret"])
def test_no_password_is_shown(name: str, user: str) -> None:
    with pytest.raises(UserError, match=r"http://host\.test/.*: names and passwords") as raised:
        open_pairs(f"http://{user}@host.test/{name}?token=secret")
    assert "secret" not in str(raised.value)


def test_no_signature_is_shown(shards: Path) -> None:
    with serving(shards) as (address, _), pytest.raises(UserError, match="404") as raised:
        open_pairs(f"{address}/gone.tar?token=secret").fingerprint()
    assert f"{address}/gone.tar: " in str(raised.value) and "secret" not in str(raised.value)


def test_urls_that_their_queries_tell_apart_are_all_read(shards: Path) -> None:
    with serving(shards / "bucket") as (url, _):
        source = open_pairs(url + "/pairs-0.tar?part={0..2}&signature=secret")
        found = [pair for part in source.parts() for pair in source.read(part)]
        assert [name for name, _ in source.images([found[-1].location])] == [found[-1].location]
    assert len({pair.location for pair in found}) == 12
    assert not any("secret" in pair.location for pair in found)


def test_s3(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    local = open_pairs(f"{shards}/bucket/pairs-{{0..2}}.tar")
    with serving(shards) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        there = open_pairs("s3://bucket/pairs-{0..2}.tar")
        assert there.fingerprint() == open_pairs("s3://bucket/pairs-{0..2}.tar").fingerprint()
        for part in local.parts():
            assert list(there.read(part)) == list(local.read(part))
        with pytest.raises(UserError, match="check the bucket"):
            open_pairs("s3://bucket/none.tar").fingerprint()


def test_s3_without_boto3_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match=r"mms-apps\[s3\]"):
        open_pairs("s3://bucket/a.tar").fingerprint()


def test_a_busy_server_is_waited_for_as_it_asks(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    soon = formatdate(time.time() + 30, usegmt=True)
    with serving(shards) as (address, server):
        source = open_pairs(f"{address}/bucket/pairs-0.tar")
        for status, pause in ((429, "7"), (503, soon), (408, ""), (425, "nonsense")):
            server.busy[:] = [(status, pause)]
            waited.clear()
            assert len(list(source.read(source.parts()[0]))) == 4
            (seconds,) = waited
            assert seconds == {"7": 7}.get(pause, 0) or (pause == soon and 20 < seconds <= 30)
        for status, pause in ((429, "86400"), (403, "1"), (410, "")):
            server.busy[:] = [(status, pause)]
            with pytest.raises(UserError, match=str(status)):
                list(source.read(source.parts()[0]))
