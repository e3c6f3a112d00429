"""A finished `mms run`, and how an error must look."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Mms, run_mms

ON_THE_CPU = ("--device", "cpu", "--workers", "0")
TRAINING = ("--features", "24", "--k", "4", "--steps", "200")
SMALL = (*TRAINING, *ON_THE_CPU)


@pytest.fixture(scope="session")
def finished(
    clip_folder: Path, imagefolder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished `mms run`; don't change it."""
    out = tmp_path_factory.mktemp("finished")
    assert run_mms("run", *run_options(clip_folder, imagefolder), "--out", out) == 0
    return out


@pytest.fixture
def attributes(mms: Mms, few_strengths: None, space_folder: Path, clip_folder: Path) -> Mms:
    """Run `mms attributes` over the tiny space: (exit code, stdout, stderr)."""

    def call(command: str, *arguments: str | Path) -> tuple[int, str, str]:
        where = ("--space", space_folder, "--encoder", f"local-dir:{clip_folder}")
        return mms("attributes", command, *where, *arguments, "--device", "cpu")

    return call


def run_options(encoder: Path, pairs: Path) -> list[str]:
    return ["--pairs", str(pairs), "--encoder", f"local-dir:{encoder}", *SMALL]


def one_error_line(err: str) -> str:
    """The one line of an error."""
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]
