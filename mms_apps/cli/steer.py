"""`mms steer`: pictures with edited features, unedited beside steered."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.errors import UserError
from features.files import write_json
from mms_apps.cli.options import MOST_SEED, Device, MovedEncoder

if TYPE_CHECKING:
    from PIL import Image

    from features.space.space import FeatureSpace
    from mms_apps.steering.edits import Blend, Edit
    from mms_apps.steering.saved import Source

STRIP = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)


def steer(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    prompt: Annotated[str | None, typer.Option(help="What to draw.")] = None,
    image: Annotated[Path | None, typer.Option(help="Reference image.")] = None,
    wish: Annotated[
        str | None,
        typer.Option(help='Features by word: "more woman, less moustache"; no, + and - too.'),
    ] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(help="FEATURE=STRENGTH, FEATURE=set:STRENGTH or FEATURE=remove; repeatable."),
    ] = None,
    blend: Annotated[
        list[str] | None,
        typer.Option(help="CLASS=ALPHA (ImgD, TextD, CrossD): towards --towards; repeatable."),
    ] = None,
    towards: Annotated[str | None, typer.Option(help="Prompt that blends go towards.")] = None,
    edits: Annotated[
        Path | None,
        typer.Option(
            help="Edits that were saved, with what they were drawn from: whatever else is given "
            "takes its place; other edits are added."
        ),
    ] = None,
    strength: Annotated[float, typer.Option(help="Of the features found by word.")] = 1.0,
    begin: Annotated[
        float | None, typer.Option(help="Share of the steps before the edits hold; 0.")
    ] = None,
    end: Annotated[
        float | None, typer.Option(help="Share of the steps after which they don't; 1.")
    ] = None,
    max_drift: Annotated[
        float | None, typer.Option(help="Degrees by which the embedding may be turned.")
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(help="embedded (the default), a Stable unCLIP folder, or its hub id."),
    ] = None,
    space: Annotated[
        str, typer.Option(help="FeatureSpace of the generator's image encoder.")
    ] = "embedded-ssl",
    encoder: MovedEncoder = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; 14.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=1, help="Guidance scale; 1 for none, 2 by default.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_SEED, help="Seed of the noise and of the prior; 0."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw with edited features: plain.png, steered.png, strip.png and edits.json."""
    from features.extras import require

    require("steering")
    from features.space.space import FeatureSpace
    from mms_apps.steering.edits import Steering
    from mms_apps.steering.generator import GUIDANCE, STEPS, SteeredGenerator, side_by_side
    from mms_apps.steering.saved import Source, pixels_sha256

    saved = (edits and Source.read(edits)) or Source()
    reference = _reference(image, prompt, saved, edits)
    source = Source(
        prompt=_first(prompt, saved.prompt),
        image=None if image is None else image.name,
        image_sha256=None if reference is None else pixels_sha256(reference),
        generator=_first(generator, saved.generator),
        seed=_first(seed, saved.seed),
        steps=_first(steps, saved.steps, STEPS),
        guidance=_first(guidance, saved.guidance, GUIDANCE),
    )
    if reference is None and not source.prompt.strip():
        raise UserError("nothing to draw; give --prompt, --image, or both")
    blends = tuple(map(_blend, blend or []))
    if blends and towards is None and edits is None:
        raise UserError("--blend: needs a prompt to blend towards; give --towards")
    out.mkdir(parents=True, exist_ok=True)
    features = FeatureSpace.load(space, device=device, encoder=encoder)
    drawer = SteeredGenerator.load(source.generator, features, device)
    given = Steering.load(edits, drawer.space) if edits else Steering()
    steering = replace(
        given,
        edits=(*given.edits, *_wished(drawer.space, wish, strength), *map(_edit, edit or [])),
        blends=(*given.blends, *blends),
        prompt=_first(towards, given.prompt),
        begin=_first(begin, given.begin),
        end=_first(end, given.end),
        max_drift=_first(max_drift, given.max_drift),
    )
    strip = drawer.strip(
        steering,
        STRIP,
        prompt=source.prompt,
        image=reference,
        seed=source.seed,
        steps=source.steps,
        guidance=source.guidance,
    )
    plain, steered = STRIP.index(0.0), STRIP.index(1.0)
    strip.images[plain].save(out / "plain.png")
    strip.images[steered].save(out / "steered.png")
    side_by_side(strip.images).save(out / "strip.png")
    steering.save(out / "edits.json", drawer.space, source)
    drift, scale = float(strip.drift[steered]), float(strip.scale[steered])
    record = {
        **dataclasses.asdict(source),
        "drift_degrees": drift,
        "scale": scale,
        "strip_strengths": STRIP,
        "strip_drift_degrees": strip.drift.tolist(),
    }
    write_json(out / "steered.json", record)
    typer.echo(
        f"drift {drift:.0f} degrees -> {out / 'steered.png'}, beside it plain.png, strip.png"
    )
    if scale < 1:
        bound = f"{steering.bound(drawer.space):.0f} degrees"
        typer.echo(f"The edits were scaled by {scale:.2g} to stay within {bound}.", err=True)


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)


def _reference(
    image: Path | None, prompt: str | None, saved: Source, edits: Path | None
) -> Image.Image | None:
    """The reference image.

    Raises:
        UserError: it cannot be read, or saved edits were drawn from one that is not given.
    """
    from features.pairs.images import read_image
    from mms_apps.steering.saved import pixels_sha256

    if image is None:
        if saved.image is not None and prompt is None:
            raise UserError(
                f"{edits}: was drawn from the reference {saved.image}; give it, or another, as "
                "--image, or give --prompt"
            )
        return None
    try:
        reference = read_image(image)
    except UserError as error:
        raise UserError(f"--image {error}") from None
    if saved.image_sha256 not in (None, pixels_sha256(reference)):
        typer.echo(f"{image}: another picture than the edits were drawn from.", err=True)
    return reference


def _wished(space: FeatureSpace, wish: str | None, strength: float) -> tuple[Edit, ...]:
    """Edits of the features that words mean; says which were taken."""
    from mms_apps.steering.catalogue import UNNAMED
    from mms_apps.steering.choosing import as_edits, choose

    if wish is None:
        return ()
    choices = choose(space, wish, strength)
    for choice in choices:
        typer.echo(
            f"{choice.word}: feature {choice.feature} ({choice.name or UNNAMED}), {choice.found}, "
            f"strength {choice.strength:+g}"
        )
    return as_edits(choices)


def _edit(written: str) -> Edit:
    """An edit from FEATURE=STRENGTH, FEATURE=set:STRENGTH or FEATURE=remove.

    Raises:
        UserError: it is none of these.
    """
    from mms_apps.steering.edits import Edit

    feature, _, value = written.partition("=")
    try:
        if value == "remove":
            return Edit(int(feature), mode="remove")
        if value.startswith("set:"):
            return Edit(int(feature), float(value.removeprefix("set:")), "set")
        return Edit(int(feature), float(value))
    except ValueError:
        raise UserError(
            f"--edit {written}: write FEATURE=STRENGTH, FEATURE=set:STRENGTH or FEATURE=remove"
        ) from None


def _blend(written: str) -> Blend:
    """A blend from CLASS=ALPHA.

    Raises:
        UserError: it is not.
    """
    from mms_apps.steering.edits import Blend

    name, _, alpha = written.partition("=")
    try:
        return Blend(name, float(alpha))
    except ValueError:
        raise UserError(f"--blend {written}: write CLASS=ALPHA, as CrossD=0.5") from None
