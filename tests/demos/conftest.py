"""All demos on one page, served by a process of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SMALLER = """
import runpy
from functools import cached_property

from features.embedded.world import EmbeddedPairs
from mms_apps.steering.generator import SteeredGenerator

every_row = EmbeddedPairs.rows.func
EmbeddedPairs.rows = cached_property(lambda self: every_row(self)[::8])
EmbeddedPairs.rows.__set_name__(EmbeddedPairs, "rows")
SteeredGenerator.generate.__kwdefaults__["steps"] = 2
runpy.run_module("demos", run_name="__main__")
"""
START = 180
"""Seconds that a busy machine may take to start."""


@dataclass(frozen=True)
class Served:
    """A running page."""

    address: str
    process: int


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`python -m demos`, of a world of fewer pairs and with pictures drawn in fewer steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    kept = tmp_path_factory.mktemp("gradio")
    log = (kept / "log.txt").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", SMALLER, "--device", "cpu", "--port", str(port)],
        cwd=ROOT,
        env=os.environ | {"GRADIO_TEMP_DIR": str(kept / "files")},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(address, process)
        yield Served(address, process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def wait_for(address: str, process: subprocess.Popen) -> None:
    """Return when the page answers."""
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5)
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the demos do not start")
