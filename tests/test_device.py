"""The one place that says which device a word stands for, on machines that are not here."""

from pathlib import Path

import pytest
import torch

from features.distributed import (
    has_bf16,
    mixed_precision,
    resolve_device,
    statistics_device,
)
from features.errors import UserError
from features.store.extract import resolve_precision


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Make this one seem to have GPUs, and this process a rank."""

    def pretend(gpus: int = 0, *, rank: int | None = None, capability=(9, 0), mps: bool = False):
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
        # As it is on a T4: emulation counts.
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize("word", ["auto", "cuda", torch.device("cuda")])
@pytest.mark.parametrize(("gpus", "rank", "index"), [(4, 3, 3), (4, 0, 0), (1, None, 0), (2, 3, 1)])
def test_gpu_is_that_of_the_local_rank(machine, word, gpus: int, rank, index: int) -> None:
    machine(gpus, rank=rank)
    assert resolve_device(word) == torch.device("cuda", index)


def test_what_is_named_is_taken(machine) -> None:
    machine(4, rank=3, mps=True)
    for name in ("cpu", "cuda:1", "mps"):
        assert str(resolve_device(name)) == name


def test_auto_is_the_cpu_where_no_gpu_does_all(machine, monkeypatch) -> None:
    machine(0)
    assert resolve_device("auto").type == "cpu"
    machine(0, mps=True)
    assert resolve_device("auto").type == "cpu"
    machine(2)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("gpus", "word"),
    [
        *((0, word) for word in ("cuda", "cuda:0", "mps", "xpu", "cpu:a")),
        *((1, word) for word in ("gpu", "CUDA", "", "cuda:1", "cuda:x", "meta")),
    ],
)
def test_devices_that_are_not_there_are_user_errors(machine, gpus: int, word: str) -> None:
    machine(gpus)
    with pytest.raises(UserError, match="use auto, cpu, cuda"):
        resolve_device(word)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((9, 0), "bf16")],
)
def test_emulated_bf16_is_not_taken(machine, capability, precision: str) -> None:
    machine(1, capability=capability)
    device = torch.device("cuda", 0)
    assert resolve_precision("auto", device) == precision
    assert has_bf16(device) == (precision == "bf16")
    assert resolve_precision("bf16", device) == "bf16"
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(("amx", "avx512"), [(False, False), (False, True), (True, False)])
def test_training_on_a_processor_without_bf16_stays_in_fp32(
    monkeypatch, amx: bool, avx512: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    x = torch.randn(4, 4)
    with mixed_precision("cpu"):
        assert (x @ x).dtype == (torch.bfloat16 if amx or avx512 else torch.float32)


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True)])
def test_training_on_a_gpu_without_bf16_stays_in_fp32(machine, capability, has: bool) -> None:
    machine(1, capability=capability)
    assert mixed_precision(torch.device("cuda", 0))._enabled == has


def test_no_training_asks_for_bf16_by_itself() -> None:
    """Which is dozens of times slower than fp32 where it is emulated."""
    root = Path(__file__).parents[1]
    askers = {
        path.relative_to(root).as_posix()
        for package in ("features", "mms_apps", "demos", "benchmarks")
        for path in (root / package).rglob("*.py")
        if "torch.autocast(" in path.read_text(encoding="utf-8")
    }
    assert askers == {
        "features/distributed.py",
        "features/store/extract.py",  # as --precision says
        "mms_apps/robustness/models.py",  # off
        "mms_apps/steering/edits.py",  # off
    }


def test_sums_in_float64_are_kept_where_there_is_float64() -> None:
    assert statistics_device(torch.device("mps")).type == "cpu"
    assert statistics_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert statistics_device(torch.device("cpu")).type == "cpu"


def test_the_command_says_it_in_one_line(mms, imagefolder, clip_folder, tmp_path) -> None:
    options = ["--pairs", imagefolder, "--encoder", f"local-dir:{clip_folder}"]
    code, _, err = mms("extract", *options, "--out", tmp_path / "s", "--device", "gpu0")
    assert code == 2 and err.startswith("Error: device 'gpu0'") and err.count("\n") == 1
    assert not (tmp_path / "s").exists()
