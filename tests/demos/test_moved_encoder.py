"""Spaces whose encoder lay in a folder that has moved."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

from features.embedded import ENCODERS, SPACES
from features.errors import UserError
from features.space.several import load_spaces
from features.space.space import FeatureSpace
from tests.conftest import Mms


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A space that names a folder which is gone, and where its encoder is now."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(SPACES / "embedded-ssl", folder / "space")
    shutil.copytree(ENCODERS / "embedded-ssl", folder / "now")
    config = folder / "space" / "config.json"
    config.write_text(config.read_text().replace('"embedded-ssl"', '"local-dir:gone"'))
    return str(folder / "space"), f"local-dir:{folder / 'now'}"


def test_steer_takes_it(moved: tuple[str, str], mms: Mms, tmp_path: Path) -> None:
    space, encoder = moved
    drawn = ("steer", "--space", space, "--prompt", "a cat", "--steps", "1", "--device", "cpu")
    code, _, error = mms(*drawn, "--out", tmp_path / "a")
    assert code == 2 and "gone" in error
    code, _, error = mms(*drawn, "--out", tmp_path / "b", "--encoder", encoder)
    assert code == 0, error
    code, _, error = mms(*drawn, "--out", tmp_path / "c", "--encoder", "embedded")
    assert code == 2 and "preprocessing or tokenizer are not those of local-dir:gone" in error


@pytest.mark.parametrize("demo", ["attributes", "explorer", "robustness", "steering"])
def test_demos_take_it(moved: tuple[str, str], monkeypatch, demo: str) -> None:
    space, encoder = moved
    module = import_module(f"demos.{demo}")
    built: list[FeatureSpace] = []

    def build(given: object, *_: object) -> None:
        found = next(iter(given.values())) if isinstance(given, dict) else given
        built.append(found if isinstance(found, FeatureSpace) else found.space)  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(module, "launch", lambda *_, **__: None)
    options = ["--space", space, "--encoder", encoder, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [demo, *options])
    module.main()
    assert built[0].encoder.id == "local-dir:now"


def test_an_encoder_that_belongs_to_none_is_refused(moved: tuple[str, str]) -> None:
    space, encoder = moved
    found = load_spaces([space, "embedded"], [encoder], "cpu")
    assert [each.encoder.id for each in found] == ["local-dir:now", "embedded"]
    with pytest.raises(UserError, match="none of the spaces"):
        load_spaces(["embedded"], [encoder], "cpu")
