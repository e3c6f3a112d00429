"""Webdataset shards on a server of this machine."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHARDS = 3


class Handler(BaseHTTPRequestHandler):
    """Serves a folder, with ranges; `broken` says what fails, `asked` what was asked for, `busy`
    the refusals (status, Retry-After) that come first."""

    folder: Path
    asked: list[str]
    broken: dict[str, int]
    busy: list[tuple[int, str]]
    version = "1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        ranged = self.headers.get("Range")
        self.asked.append(path if ranged is None else f"{path} {ranged}")
        file = self.folder / path.lstrip("/")
        if self.busy:
            status, pause = self.busy.pop(0)
            self.send_response(status)
            self.send_header("Retry-After", pause)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
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
        self.send_header("ETag", f'"{self.version}"')
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
    handler = type("Serving", (Handler,), {"folder": folder, "asked": [], "broken": {}, "busy": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


def write_shards(folder: Path, imagefolder: Path) -> Path:
    """A folder `bucket` in `folder` of three shards of four pairs each."""
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
