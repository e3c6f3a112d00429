"""`mms robustness`: the evaluation from the command line. Heavy libraries are imported inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mms_apps.robustness.results import Evaluation


def robustness(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    space: Annotated[
        str, typer.Option(help="Folder or hub id of a FeatureSpace, or embedded.")
    ] = "embedded",
    pairs: Annotated[
        str, typer.Option(help="Images with attributes, as `mms run` takes them.")
    ] = "embedded:heldout",
    label: Annotated[
        str,
        typer.Option(help="Attribute that gives the classes, or retrieval: each caption is one."),
    ] = "gender",
    classes: Annotated[
        str | None,
        typer.Option(help="Values of the attribute to tell apart, by commas [default: all]."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="Prompt of a class, with {} for its name; several are averaged."),
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
            "evaluated clean, non-adaptive and adaptive."
        ),
    ] = None,
    surrogate: Annotated[
        str | None,
        typer.Option(
            help="Encoder from which images are transferred [default: the other embedded one]."
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoder of the space, where it lay in a local folder."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images attacked at once; more on a GPU.")
    ] = 128,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the draw, the attacks and the intervals.")] = 0,
) -> None:
    """Attack a CLIP-like model's classification and check that the attacks can be believed.

    Run it again to go on after an interruption. Exits with 1 if a check failed.
    """
    from features.extras import require

    require("robustness")
    from features.encoders.load import load_encoder
    from features.space.space import FeatureSpace
    from mms_apps.robustness.attacks.base import AttackConfig
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
    loaded = FeatureSpace.load(space, device=device, encoder=encoder)
    own = loaded.encoder
    task = load_task(
        pairs,
        own,
        label=label,
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        templates=template,
        count=count,
        seed=seed,
    )
    other = load_encoder(surrogate or other_embedded(own.id), device=device)
    with _bar() as advance:
        found = evaluate(
            task.classifier(own),
            task,
            out,
            config,
            space=loaded,
            surrogate=task.classifier(other, before=ResizedTo(*image_size(other))),
            encoder=own.id,
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


def other_embedded(encoder: str) -> str:
    """The embedded encoder that is not this one."""
    return "embedded" if encoder == "embedded-ssl" else "embedded-ssl"


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
    passed = sum(check.passed for check in found.checks)
    console.print(f"{passed} of {len(found.checks)} checks passed")
