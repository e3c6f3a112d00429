"""Every command and every piece of Python in the README and the documentation.

Each `mms` command must parse. Those that finish quickly also run, page by page, in a folder with
what a reader would have: pairs in `photos/`, earlier runs, a picture. What makes them small is
replaced: encoders that would be downloaded, the size of the worlds that ship, the steps of
training, the parts of a picture that evidence is asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import typer

from benchmarks import write_pages
from benchmarks.evaluator import ATTRIBUTES
from features.dictionary import TrainConfig
from features.embedded.photos import PhotoPairs
from features.embedded.world import EmbeddedPairs
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.evidence.pictures import picture_evidence
from features.space.space import FeatureSpace
from mms_apps import cli
from mms_apps.cli.common import train_config
from tests.conftest import Mms, draw_imagefolder, save_tiny_clip

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
)
IN_TABLE = re.compile(r"\| `((?:mms|python|make) [^`]+)`")
COMMANDS = ("mms", "python", "make", "pip", "accelerate", "torchrun", "git", "docker")
ONLY_PARSED = (
    "explore",
    "steer",
    "train-encoder",
    "train-generator",
    "robustness",
    "attributes audit",
    "attributes debias",
    "attributes correct",
    "attributes predict --pairs photos/ --attribute shape --model runs/correct",
    "drift runs/old/space runs/this-week/space --pairs photos/ --edit",
    "concepts --space garments",
)
"""Commands that take minutes or hours, download, or serve a page; each has tests of its own."""
NEEDS_NETWORK = ("from_pretrained(", "pipe(")
OFFLINE = ("embedded", "embedded-ssl", "photos")


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, content) of a page's fenced blocks, indented lines and tables' commands, in
    order."""
    language: str | None = None
    lines: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```") and language is None:
            language, lines = line.removeprefix("```"), []
        elif line.startswith("```") and language is not None:
            yield language, "\n".join(lines)
            language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("    "):
            yield "sh", line
        else:
            yield from (("sh", command) for command in IN_TABLE.findall(line))


def commands(page: Path) -> list[list[str]]:
    """The shell commands of a page, as words."""
    found = []
    for language, content in blocks(page):
        if language == "yaml":
            content = "\n".join(re.findall(r"- run: (.*)", content))
        elif language != "sh":
            continue
        for line in content.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip(), comments=True)
            if words and words[0] in COMMANDS:
                found.append(words)
    return found


def python_blocks(page: Path) -> list[str]:
    return [content for language, content in blocks(page) if language == "python"]


ALL = [(page_name(page), shlex.join(words)) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{p}: {c}" for p, c in ALL])
def test_commands_parse(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(shlex.split(command), monkeypatch)


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a command names what isn't there."""
    program, *arguments = words
    if program in ("accelerate", "torchrun"):
        module = arguments.index("-m")
        assert arguments[module + 1] == "mms_apps.cli"
        program, arguments = "mms", arguments[module + 2 :]
    if program == "mms":
        group = typer.main.get_command(cli.app)
        while isinstance(group, click.Group) or hasattr(group, "commands"):
            group = group.commands[arguments[0]]  # type: ignore[union-attr]
            arguments = arguments[1:]
        group.make_context(group.name, list(arguments))
    elif program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif program == "python":
        assert arguments[0] == "-m" and (ROOT / arguments[1].replace(".", "/")).parent.is_dir()
        if arguments[1].startswith("benchmarks."):
            parse_benchmark(arguments[1], arguments[2:], monkeypatch)
    elif program == "pip":
        assert arguments[0] == "install"
        for word in arguments[1:]:
            extra = re.search(r"\[(\w+)\]", word)
            assert extra is None or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text()
            assert not word.endswith(".txt") or (ROOT / word).is_file()


def parse_benchmark(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a benchmark's `main` up to where it has read its arguments."""

    class Read(Exception):
        pass

    read = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *_: Any) -> None:
        read(self, arguments)
        raise Read

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Read):
        importlib.import_module(module).main()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, a picture, words, and the earlier runs that pages speak of."""
    folder = tmp_path_factory.mktemp("reader")
    draw_imagefolder(folder / "photos")
    draw_imagefolder(folder / "more", count=12, seed=1)
    shutil.copy(folder / "photos" / "images" / "0001.png", folder / "photo.png")
    (folder / "words.txt").write_text("red\nblue\ncircle\nsquare\n")
    save_embeddings(folder / "laion")
    shutil.copytree(ROOT / "tests" / "autoencoders" / "sparsify", folder / "saes" / "clip")
    save_tiny_clip(folder / "tiny")
    save_tiny_clip(folder / "encoders" / "mine")
    return folder


def short_training(*options: Any) -> TrainConfig:
    """The command's settings, for 20 steps."""
    config = train_config(*options)
    return dataclasses.replace(config, steps=20, samples=None, epochs=None)


def save_embeddings(folder: Path) -> None:
    """A small folder as clip-retrieval writes them."""
    for number, name in enumerate(("img_emb", "text_emb")):
        (folder / name).mkdir(parents=True)
        x = np.random.default_rng(number).standard_normal((60, 16)).astype(np.float16)
        np.save(folder / name / f"{name}_0.npy", x)


@pytest.fixture(scope="module")
def done() -> set[str]:
    return set()


@pytest.fixture
def small(
    workplace: Path, done: set[str], monkeypatch: pytest.MonkeyPatch, mms: Mms
) -> SimpleNamespace:
    """What is replaced; `mms`, which runs a command, and `done`, those that ran."""
    monkeypatch.chdir(workplace)

    def load(encoder_id: str, device: str = "auto") -> Encoder:
        if encoder_id in OFFLINE or encoder_id.startswith("local-dir:"):
            return load_encoder(encoder_id, "cpu")
        encoder = load_encoder(f"local-dir:{workplace / 'tiny'}", "cpu")
        encoder.id = encoder_id
        return encoder

    for module in ("features.encoders.load", "features.space.space"):
        monkeypatch.setattr(f"{module}.load_encoder", load)
    monkeypatch.setattr("features.picture_evidence", partial(picture_evidence, grid=4))
    for world in (EmbeddedPairs, PhotoPairs):
        monkeypatch.setattr(world, "rows", _cached(_thinned(world.rows.func)))
    for command in ("run", "stages"):
        monkeypatch.setattr(
            f"mms_apps.cli.{command}.train_config",
            short_training,
        )

    if not (workplace / "runs").exists():
        options = ["--pairs", "photos/", "--encoder", "ViT-B-32/laion2b_s34b_b79k"]
        code, _, error = mms("run", *options, "--out", "runs/photos")
        assert code == 0, error
        for name in ("old", "new"):
            shutil.copytree(workplace / "runs/photos", workplace / "runs" / name)
    return SimpleNamespace(mms=mms, done=done)


def _thinned(every_row: Callable[[Any], list[dict]]) -> property:
    return property(lambda self: every_row(self)[::16])


def _cached(rows: property) -> property:
    kept: dict[int, tuple[Any, list[dict]]] = {}

    def get(self: Any) -> list[dict]:
        if id(self) not in kept:
            kept[id(self)] = (self, rows.fget(self))  # type: ignore[misc]
        return kept[id(self)][1]

    return property(get)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_run(page: Path, small: SimpleNamespace) -> None:
    for program, *arguments in commands(page):
        line = shlex.join(arguments)
        if program != "mms" or line.startswith(ONLY_PARSED) or line in small.done:
            continue
        small.done.add(line)
        expected = (0, 1) if arguments[0] == "drift" else (0,)
        code, _, error = small.mms(*arguments)
        assert code in expected, f"{line}\n{error}"
        out = arguments[arguments.index("--out") + 1]
        assert Path(out).exists(), line


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_runs(page: Path, small: SimpleNamespace) -> None:
    names: dict[str, Any] = {}
    for content in python_blocks(page):
        code = compile(content, page.name, "exec")
        if not any(word in content for word in NEEDS_NETWORK):
            exec(code, names)


def test_the_scale_page_has_all_figures() -> None:
    record = json.loads((ROOT / "docs" / "figures" / "scale.json").read_text())
    for row in record["results"]:
        assert f"`{row['name']}`" in text_of("scale.md")


def test_the_worked_example_names_features_as_they_ship() -> None:
    space = FeatureSpace.load("embedded-ssl", device="cpu")
    named = list(zip(*(space.features[c].to_pylist() for c in ("name", "mds")), strict=True))
    rows = re.findall(r"\| `([^`]+)` \| (\d\.\d\d) \|$", text_of("decision.md"), re.MULTILINE)
    assert len(rows) == 5
    for name, mds in rows:
        assert (name, mds) in [(other, f"{value:.2f}") for other, value in named]


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_the_method_page_has_the_intervals_figures() -> None:
    record = json.loads((ROOT / "docs" / "results" / "intervals.json").read_text())
    rows = {row["name"]: row for row in record["results"]}
    text = text_of("method.md")
    settings = [name.removeprefix("coverage/") for name in rows if name.startswith("coverage/")]
    assert len(settings) == 20
    for setting in settings:
        covered, width = rows[f"coverage/{setting}"]["value"], rows[f"width/{setting}"]["value"]
        assert f"{covered:.3f} (width {width:.2f})" in text
        assert 0.9 <= covered <= 0.995
    for name in ("agreement/auroc", "agreement/auroc_of_mds", "agreement/planted/shared"):
        row = rows[name]
        assert f"{row['value']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f})" in text


def test_the_readmes_table_has_the_figures_of_their_json() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| claim | measured |") :].split("\n\n")[0].splitlines()

    def line(start: str) -> str:
        (found,) = (row for row in table if row.startswith(f"| {start}"))
        return found

    def short(source: str, name: str, digits: int) -> str:
        return f"{write_pages.rows(source)[name]['value']:.{digits}f}".removeprefix("0")

    covered = [
        row["value"]
        for name, row in write_pages.rows("intervals").items()
        if name.startswith("coverage/")
    ]
    ends = (f"{value:.3f}".removeprefix("0") for value in (min(covered), max(covered)))
    assert " to ".join(ends) in line("its intervals")
    compared = json.loads(text_of("results/dictionaries-topk.json"))["differences"][0]
    assert any(
        "modality-specific" in said and said.replace("0.", ".").endswith("by .215 (.195 to .236).")
        for said in compared
    )
    assert "+.215 (.195 to .236)" in line("self-supervision")
    assert not any("monosemantic" in said for said in compared)
    fewer = write_pages.rows("attributes")["accuracy/gender/sparse_less_linear"]
    assert write_pages.written(fewer, 1, ["points"]).replace(" (", " points (") in line("twenty")
    for name in ("none", "features"):
        figure = short("attributes", f"fresh/worst_group/{name}", 2)
        assert figure in line("taking features out")
    for method in ("features", "image_direction"):
        figure = short("steering", f"excess/gender/{method}", 3)
        assert f"{method.replace('_', ' ').removeprefix('features')} {figure}".strip() in line(
            "edits"
        )
    for features in ("ImgD", "random_as_ImgD"):
        assert short("steering", f"class/{features}/background", 2) in line("image-dominant")
    for method in ("features", "text_direction", "image_direction"):
        assert short("steering", f"success/background/{method}", 2) in line("features steer")


@pytest.mark.parametrize("name", write_pages.names())
def test_pages_of_results_have_the_figures_of_their_json(name: str) -> None:
    template = (write_pages.TEMPLATES / f"{name}.md").read_text(encoding="utf-8")
    assert write_pages.FIGURE.search(template) and "In short:" in template
    assert text_of(f"results/{name}.md") == write_pages.rendered(name)


def test_the_steering_page_has_every_method_of_every_attribute() -> None:
    found = write_pages.rows("steering")
    template = (write_pages.TEMPLATES / "steering.md").read_text(encoding="utf-8")
    shown = {match["name"] for match in write_pages.FIGURE.finditer(template)}
    methods = [name.split("/")[1:] for name in found if name.startswith("success/")]
    assert {attribute for attribute, _ in methods} == set(ATTRIBUTES)
    for attribute, method in methods:
        for measure in ("success", "gain", "excess", "preservation"):
            assert f"{measure}/{attribute}/{method}" in shown
    assert {name for name in found if name.startswith(("less/", "class/"))} <= shown
    assert {"frechet/reference", "frechet/real"} <= shown


def test_the_page_of_dictionaries_has_three_trainings() -> None:
    record = json.loads(text_of("results/dictionaries-topk.json"))
    assert [space["seeds"] for space in record["spaces"]] == [3, 3]
    template = (write_pages.TEMPLATES / "dictionaries.md").read_text(encoding="utf-8")
    shown = {(match["source"], match["name"]) for match in write_pages.FIGURE.finditer(template)}
    for name in write_pages.rows("dictionaries-topk"):
        assert ("dictionaries-topk", name) in shown


def test_figures_are_written_with_their_intervals() -> None:
    row = {"value": 0.5, "ci_low": -0.0001, "ci_high": 0.75, "n": 8}
    assert write_pages.written(row, 2, []) == "0.50 (0.00 to 0.75)"
    assert write_pages.written(row, 1, ["points"]) == "50.0 (0.0 to 75.0)"
    assert write_pages.written(row, 2, ["value"]) == "0.50"
    assert write_pages.written(row, 2, ["range"]) == "0.00 to 0.75"
    certain = {"value": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 8}
    assert write_pages.written(certain, 2, []) == "1.00 (8 of 8)"
    assert write_pages.written(certain | {"unit": "Spearman"}, 2, []) == "1.00 (1.00 to 1.00)"
