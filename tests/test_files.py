"""Files written whole or not at all, and checkpoints."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from features.checkpoint import load_checkpoint, save_checkpoint
from features.dictionary import DictionaryConfig
from features.dictionary.identity import IdentityDictionary
from features.errors import UserError, first_line
from features.files import replacing, write_json, write_tensors
from mms_apps.robustness.parts import Part
from mms_apps.steering.prior import Prior


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}


def some_dictionary(folder: Path) -> Path:
    config = DictionaryConfig("identity", dim=3, features=3, k=3, modality_bias=False, encoder="e")
    IdentityDictionary(config).save_weights(folder / "file")
    return folder / "file"


def a_checkpoint(folder: Path) -> Path:
    model = nn.Linear(3, 2)
    save_checkpoint(folder / "file", {"m": model}, torch.optim.Adam(model.parameters()), 1, "")
    return folder / "file"


def a_prior(folder: Path) -> Path:
    Prior(torch.ones(2, 3), torch.ones(3), torch.ones(4, 3)).save(folder)
    return folder / "prior.safetensors"


def an_attack(folder: Path) -> Path:
    none = torch.zeros(0)
    Part(none, none, 0.0, 0, [], none, none).save(folder / "file")
    return folder / "file"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
@pytest.mark.parametrize("save", [some_dictionary, a_checkpoint, a_prior, an_attack])
def test_a_full_disk_is_the_error_of_the_system(
    tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    file = save(tmp_path)
    before = file.read_bytes()
    file.with_name(file.name + ".tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        save(tmp_path)
    assert raised.value.errno == errno.ENOSPC
    assert file.read_bytes() == before


def test_a_full_disk_is_said_by_the_command(
    tmp_path: Path, mms: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    source = Path(__file__).parent / "autoencoders" / "saelens-standard"
    code, _, err = mms("convert", source, "--out", tmp_path / "out")
    assert code == 2
    assert "Error: No space left on device; free some of it, and run the same command again" in err


def test_tensors_of_any_layout_are_written(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {"t": torch.arange(6.0).view(2, 3).T, "g": torch.ones(2, requires_grad=True)}
    write_tensors(tmp_path / "x", tensors)
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert (tmp_path / "x").stat().st_mode == file_mode(tmp_path)


def file_mode(folder: Path) -> int:
    """Of a file that is written as any other."""
    (folder / "other").touch()
    return (folder / "other").stat().st_mode


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
