"""`mms steer`: pictures with edited features, unedited beside steered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.errors import UserError
from features.files import write_json
from mms_apps.cli.options import MovedEncoder

if TYPE_CHECKING:
    from features.space.space import FeatureSpace
    from mms_apps.steering.edits import Blend, Edit

STRIP = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)


def steer(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "",
    image: Annotated[Path | None, typer.Option(help="Reference image.")] = None,
    wish: Annotated[
        str | None, typer.Option(help='Features by word: "more woman, less moustache".')
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
        Path | None, typer.Option(help="Edits that were saved; others are added to them.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Of the features found by word.")] = 1.0,
    begin: Annotated[float, typer.Option(help="Share of the steps before the edits hold.")] = 0.0,
    end: Annotated[float, typer.Option(help="Share of the steps after which they don't.")] = 1.0,
    max_drift: Annotated[
        float | None, typer.Option(help="Degrees by which the embedding may be turned.")
    ] = None,
    generator: Annotated[
        str, typer.Option(help="embedded, a Stable unCLIP folder, or its hub id.")
    ] = "embedded",
    space: Annotated[
        str, typer.Option(help="FeatureSpace of the generator's image encoder.")
    ] = "embedded-ssl",
    encoder: MovedEncoder = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 14,
    guidance: Annotated[float, typer.Option(min=1, help="Guidance scale; 1 for none.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise and of the prior.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Draw with edited features: plain.png, steered.png, strip.png and edits.json."""
    from features.pairs.images import read_image
    from features.space.space import FeatureSpace
    from mms_apps.steering.edits import Steering
    from mms_apps.steering.generator import SteeredGenerator, side_by_side

    try:
        reference = None if image is None else read_image(image)
    except UserError as error:
        raise UserError(f"--image {error}") from None
    if reference is None and not prompt.strip():
        raise UserError("nothing to draw; give --prompt, --image, or both")
    features = FeatureSpace.load(space, device=device, encoder=encoder)
    drawer = SteeredGenerator.load(generator, features, device)
    given = Steering.load(edits, drawer.space) if edits else Steering()
    steering = Steering(
        edits=(*given.edits, *_wished(drawer.space, wish, strength), *map(_edit, edit or [])),
        blends=(*given.blends, *map(_blend, blend or [])),
        prompt=towards or given.prompt,
        begin=begin,
        end=end,
        max_drift=given.max_drift if max_drift is None else max_drift,
    )
    strip = drawer.strip(
        steering,
        STRIP,
        prompt=prompt,
        image=reference,
        seed=seed,
        steps=steps,
        guidance=guidance,
    )
    plain, steered = STRIP.index(0.0), STRIP.index(1.0)
    out.mkdir(parents=True, exist_ok=True)
    strip.images[plain].save(out / "plain.png")
    strip.images[steered].save(out / "steered.png")
    side_by_side(strip.images).save(out / "strip.png")
    steering.save(out / "edits.json", drawer.space)
    drift, scale = float(strip.drift[steered]), float(strip.scale[steered])
    record = {
        "prompt": prompt,
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
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
        bound = f"{steering.max_drift:.0f} degrees"
        typer.echo(f"The edits were scaled by {scale:.2f} to stay within {bound}.", err=True)


def _wished(space: FeatureSpace, wish: str | None, strength: float) -> tuple[Edit, ...]:
    """Edits of the features that words mean; says which were taken."""
    from mms_apps.steering.choosing import as_edits, choose

    if wish is None:
        return ()
    choices = choose(space, wish, strength)
    for choice in choices:
        typer.echo(
            f"{choice.word}: feature {choice.feature} ({choice.name}), found by its {choice.how}, "
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
