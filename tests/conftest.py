"""Shared fixtures: a tiny random CLIP saved as an open_clip folder, a small imagefolder, and a
FeatureSpace of both."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from features.dictionary import TrainConfig, fit_dictionary
from features.encoders.load import load_encoder
from features.pairs.open import open_pairs
from features.space.score import score
from features.store.extract import extract
from mms_apps import cli

Mms = Callable[..., tuple[int, str, str]]
COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "line")
IMAGE_SIZE = 32


# Sums depend on the number of threads in their last bits; the tests' subprocesses take it too.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Save a random open_clip model (dim 16, 32-px images) and its tokenizer, as a local-dir."""
    import open_clip
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<start>", "a", *COLOURS, *SHAPES, "drawing", "of", "<end>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[("<start>", vocabulary["<start>"]), ("<end>", vocabulary["<end>"])],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": len(words),
            "hf_tokenizer_name": "tokenizer",
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**model_cfg)
    for name, buffer in model.named_buffers():  # statistics that batch norm must not update
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.1, generator=torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return folder


def draw_imagefolder(folder: Path, count: int = 40, seed: int = 0) -> Path:
    """Draw PNGs of coloured shapes (some with alpha) with a metadata.jsonl."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    lines = []
    for index in range(count):
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        size = IMAGE_SIZE if index % 2 else rng.randint(24, 48)
        mode, ground = ("RGBA", (0, 0, 0, 0)) if index % 3 == 0 else ("RGB", (230, 230, 230))
        image = Image.new(mode, (size, size), ground)
        pen = ImageDraw.Draw(image)
        box = (rng.randint(1, 8), rng.randint(1, 8), size - 4, size - 4)
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        elif shape == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.line(box, fill=colour, width=3)
        image.save(folder / "images" / f"{index:04d}.png")
        record = {
            "file_name": f"images/{index:04d}.png",
            "text": f"a {colour} {shape}" if index % 5 else [f"a {colour} {shape}", f"{shape}"],
            "tags": [colour, shape],
            "colour": colour,
            "shape": shape if index % 4 else None,
        }
        lines.append(json.dumps(record) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP as a `local-dir:` folder."""
    return save_tiny_clip(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="session")
def imagefolder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 drawn PNGs with metadata.jsonl; don't change it."""
    return draw_imagefolder(tmp_path_factory.mktemp("pairs") / "shapes")


@pytest.fixture(scope="session")
def space_folder(
    clip_folder: Path, imagefolder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved FeatureSpace of the tiny CLIP over the drawn shapes."""
    work = tmp_path_factory.mktemp("space")
    encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    source = open_pairs(str(imagefolder))
    store = extract(source, encoder, work / "store", progress=False, workers=0)
    config = TrainConfig(features=24, k=4, steps=200)
    dictionary = fit_dictionary(store, config, work / "dictionary", device="cpu", progress=False)
    scored = score(store, dictionary, source=source, min_pairs=2, device="cpu", progress=False)
    return scored.save(work / "space")


def run_mms(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sys, "argv", ["mms", *map(str, arguments)])
        cli.main()
    return int(stopped.value.code or 0)


@pytest.fixture
def mms(capsys: pytest.CaptureFixture[str]) -> Mms:
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = run_mms(*arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def few_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes choose among three penalties."""
    monkeypatch.setattr("mms_apps.attributes.estimators.STRENGTHS", (0.1, 1.0, 10.0))


def launch(processes: int, *arguments: str | Path) -> None:
    """Run a script, or `-m` and a module, with its arguments under `accelerate launch`."""
    process = start(processes, *arguments)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


def start(processes: int, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start what `launch` runs."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    # With --cpu it starts more than one process by MPI alone; this way torchrun starts them.
    command += ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += map(str, arguments)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
