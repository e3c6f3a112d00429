"""Files written whole or not at all, and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from features.checkpoint import load_checkpoint, save_checkpoint
from features.errors import UserError, first_line
from features.files import replacing, write_json


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_checkpoint_restores_modules_and_optimizer(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(path, {"model": model}, optimizer, 7, "settings")
    again = torch.optim.Adam(other.parameters())
    assert load_checkpoint(path, {"model": other}, again, "settings") == 7
    assert torch.equal(model.weight, other.weight)
    moment = optimizer.state[model.weight]["exp_avg"]
    assert torch.equal(moment, again.state[other.weight]["exp_avg"])


def test_a_checkpoint_of_other_settings_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    assert load_checkpoint(path, {"model": model}, optimizer, "settings") == 0
    save_checkpoint(path, {"model": model}, optimizer, 7, "settings")
    with pytest.raises(UserError, match="other settings"):
        load_checkpoint(path, {"model": model}, optimizer, "others")
    assert path.is_file()


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("what\nwhere")) == "what"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("\nErrors in CLIP:\n\tsize of a\n\tsize of b")) == (
        "Errors in CLIP: size of a"
    )
    assert len(first_line(ValueError("x" * 999))) == 200
    long = first_line(ValueError("word " * 99))
    assert long.endswith("word ...") and len(long) <= 200
