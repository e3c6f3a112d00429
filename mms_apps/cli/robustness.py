"""`mms robustness`: the evaluation from the command line. Heavy libraries are imported inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mms_apps.cli.options import MOST_SEED, Device

if TYPE_CHECKING:
    from mms_apps.robustness.results import Evaluation


def robustness(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    space: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id of a FeatureSpace, or embedded [default: embedded, or none with "
            "--encoder]."
        ),
    ] = None,
    pairs: Annotated[
        str, typer.Option(help="Images with attributes, as `mms run` takes them.")
    ] = "embedded:heldout",
    label: Annotated[
        str | None,
        typer.Option(
            help="Attribute that gives the classes, or retrieval: an image's captions are a class "
            "[default: gender with embedded pairs, else label, which class folders have]."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Values of the attribute to tell apart, by commas [default: all]."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="Prompt of a class, with {} for its name; several are averaged."),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            help="Names of the classes, as ImageNet has them: one a line or a JSON list, in the "
            "order of the classes, or a JSON object from each to its name."
        ),
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(help="Prompts of a class as --template, one a line or a JSON list."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images at most.")] = 300,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="noise, fgsm, pgd, apgd, apgd-dlr, apgd-t, fab, cw, square or autoattack, once "
            "each [default: noise, fgsm, pgd, apgd, square]."
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Size of the change, such as 4/255 or 0.5, once each "
            "[default: 1, 2, 4, 8, 16 of 255; 0.25, 0.5, 1, 2, 4 with L2]."
        ),
    ] = None,
    norm: Annotated[str, typer.Option(help="Linf or L2.")] = "Linf",
    steps: Annotated[int, typer.Option(min=1, help="Of APGD, FAB and CW.")] = 100,
    pgd_steps: Annotated[int, typer.Option(min=1, help="Of PGD.")] = 40,
    queries: Annotated[int, typer.Option(min=1, help="Of Square; the reference takes 5000.")] = 500,
    restarts: Annotated[int, typer.Option(min=1, help="Starts of each attack.")] = 1,
    defence: Annotated[
        list[str] | None,
        typer.Option(
            help="keep:CrossD, remove:ImgD, weight:ImgD=0.5,CrossD=2 or squeeze:3, once each; "
            "evaluated clean, non-adaptive, adaptive, by Square, and in the worst case."
        ),
    ] = None,
    surrogate: Annotated[
        str | None,
        typer.Option(
            help="Encoder from which images are transferred [default: to an embedded encoder the "
            "other one, else none]."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="An encoder without a FeatureSpace, such as FARE or TeCoA: architecture/tag, "
            "hf-hub:org/name or local-dir:path; with --space its encoder, where it lay in a local "
            "folder."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images attacked at once; more on a GPU.")
    ] = 128,
    device: Device = "auto",
    seed: Annotated[
        int,
        typer.Option(min=0, max=MOST_SEED, help="Of the draw, the attacks and the intervals."),
    ] = 0,
) -> None:
    """Attack a CLIP-like model's classification and check that the attacks can be believed.

    Run it again to go on after an interruption. Exits with 1 if a check failed.
    """
    from features.extras import require

    require("robustness")
    from features.encoders.load import load_encoder
    from features.space.space import FeatureSpace
    from mms_apps.robustness.attacks.base import AttackConfig
    from mms_apps.robustness.class_names import read_class_names, read_templates
    from mms_apps.robustness.distances import EPS, read_eps, read_norm
    from mms_apps.robustness.evaluation import evaluate
    from mms_apps.robustness.models import ResizedTo, image_size
    from mms_apps.robustness.report import write_robustness_report
    from mms_apps.robustness.results import EvaluationConfig
    from mms_apps.robustness.tasks import load_task

    own_norm = read_norm(norm)
    config = EvaluationConfig(
        attacks=tuple(dict.fromkeys(attack or EvaluationConfig.attacks)),
        eps=tuple(read_eps(text, own_norm) for text in eps) if eps else EPS[own_norm],
        attack=AttackConfig(
            norm=own_norm,
            pgd_steps=pgd_steps,
            steps=steps,
            queries=queries,
            restarts=restarts,
            batch_size=batch_size,
            seed=seed,
        ),
        defences=tuple(dict.fromkeys(defence or ())),
    )
    loaded = None
    if space is not None or encoder is None:
        loaded = FeatureSpace.load(space or "embedded", device=device, encoder=encoder)
        own = loaded.encoder
    else:
        own = load_encoder(encoder, device=device)
    task = load_task(
        pairs,
        own,
        label=label or ("gender" if pairs.startswith("embedded") else "label"),
        classes=None if classes is None else [n.strip() for n in classes.split(",") if n.strip()],
        templates=[*(template or ()), *(read_templates(templates) if templates else ())],
        class_names=None if class_names is None else read_class_names(class_names),
        count=count,
        seed=seed,
    )
    other_id = surrogate or fitting_surrogate(own.id)
    transferring = None
    if other_id is not None:
        other = load_encoder(other_id, device=device)
        transferring = task.classifier(other, before=ResizedTo(*image_size(other)))
    with _bar() as advance:
        found = evaluate(
            task.classifier(own),
            task,
            out,
            config,
            space=loaded,
            surrogate=transferring,
            encoder=own.id,
            surrogate_name=other_id or "",
            progress=advance,
        )
    page = write_robustness_report(found, out / "report.html")
    _summarise(found)
    typer.echo(f"report: {page}")
    if not found.reliable:
        for check in found.checks:
            if not check.passed:
                typer.echo(f"Check failed: {check.name}. {check.advice}", err=True)
        typer.echo("These results are not to be relied on.", err=True)
        raise typer.Exit(1)


def fitting_surrogate(encoder: str) -> str | None:
    """An encoder that knows the same images and words as this one; None where none is known."""
    return {"embedded": "embedded-ssl", "embedded-ssl": "embedded"}.get(encoder)


@contextmanager
def _bar() -> Iterator[Callable[[float, str], None]]:
    """A progress line on a terminal: gives the function to call with the share and what is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        line = progress.add_task("", total=1.0)
        yield lambda share, what: progress.update(line, completed=share, description=what)


def _summarise(found: Evaluation) -> None:
    """Print the table of accuracies."""
    from rich.console import Console
    from rich.table import Table

    from mms_apps.robustness.distances import readable_eps

    eps = sorted(found.config.eps)
    title = f"Accuracy of {found.encoder} on {found.images} images, {found.task}"
    table = Table(title=title)
    table.add_column("attack")
    for heading in ("clean", *(readable_eps(value) for value in eps)):
        table.add_column(heading, justify="right")
    for name, curve in found.accuracy.items():
        cells = [f"{curve[value].value:.1%}" if value in curve else "" for value in eps]
        table.add_row(name, f"{found.clean.value:.1%}", *cells)
    console = Console()
    console.print(table)
    for defence in found.defences:
        worst, undefended = defence.worst.value, defence.undefended.value
        console.print(f"{defence.defence}: worst case {worst:.1%}, undefended {undefended:.1%}")
    for sentence in found.left_out:
        console.print(sentence)
    passed = sum(check.passed for check in found.checks)
    console.print(f"{passed} of {len(found.checks)} checks passed")
