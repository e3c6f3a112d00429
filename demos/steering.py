"""Steering: a picture from a prompt or a reference, its features edited, beside the unedited one.

python -m demos.steering
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from demos.common import (
    ONE_AT_A_TIME,
    add_encoder,
    errors_in_words,
    gr,
    launch,
    options,
    page,
    picture_input,
    run_in_words,
)
from features.reports.page import CLASS_NAMES, MODALITY_CLASSES
from features.space.space import FeatureSpace
from mms_apps.steering.bundle import write_bundle
from mms_apps.steering.catalogue import Card, cards, search, title
from mms_apps.steering.choosing import as_edits, choose
from mms_apps.steering.controls import SLOTS, STRONGEST, Controls, Sliders
from mms_apps.steering.edits import MODES, Edit, Steering
from mms_apps.steering.generator import GUIDANCE, STEPS, SteeredGenerator, side_by_side
from mms_apps.steering.saved import Source, pixels_sha256, steering_record

STRIP = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0)
PREVIEW = (-2.0, 0.0, 2.0)
SHOWN = 12
MOST_STEPS = 100
SIDE = 256
CSS = """
#edits .cm-line span { color: inherit; }
#found .grid-container { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
#found .thumbnail-item { aspect-ratio: 1; height: auto; }
#found .caption-label { font-size: .75rem; white-space: normal; max-width: 94%; }
"""
HELP = """
A feature's strength is in units of its mean activation; 0 leaves it as it is. The unedited picture
and the steered one start from the same noise. *Add* gives more of a feature, *set* brings it to the
strength, *remove* takes it away; none goes below absent. *Drift* is the angle by which the
embedding was turned: past the bound, edits are scaled down.
"""
CONTROLS = 7
"""Towards, class, alpha, begin, end, drift and what is kept come before the sliders."""


def fill(
    space: FeatureSpace, drawer: Callable[[], SteeredGenerator], generator: str = "embedded"
) -> None:
    """Put the app on the page that is being built.

    Args:
        drawer: makes the generator, whose space is `space`, when the first picture is drawn.
        generator: what the drawer loads, to be saved with edits.
    """
    classes = [(CLASS_NAMES[name], name) for name in MODALITY_CLASSES]
    choices = [(title(space, n), n) for n in range(len(space))]
    downloads = tempfile.TemporaryDirectory()

    def steering_of(*values: Any) -> Steering:
        *alone, kept = values[:CONTROLS]
        return Controls(*alone, sliders_of(*values[CONTROLS:]), kept).steering()

    def drawn_from(
        prompt: str | None,
        image: Image.Image | None,
        seed: int,
        steps: int,
        guidance: float,
    ) -> dict[str, Any]:
        how = {"seed": seed, "steps": steps, "guidance": guidance}
        return {"prompt": prompt or "", "image": image, **how}

    def source_of(image: Image.Image | None, **given: Any) -> Source:
        known = None if image is None else pixels_sha256(image)
        name = None if image is None else "reference.png"
        return Source(image=name, image_sha256=known, generator=generator, **given)

    def draw(prompt: str, image: Image.Image | None, seed: int, *values: Any) -> tuple:
        *controls, steps, guidance = values
        given = drawn_from(prompt, image, seed, steps, guidance)
        with errors_in_words():
            steering = steering_of(*controls)
            made = drawer().generate([Steering(), steering], **given)
        plain, steered = (enlarged(picture) for picture in made.images)
        said = f"Drift {float(made.drift[1]):.0f}°"
        if made.scale[1] < 1:
            said += f"; scaled by {float(made.scale[1]):.2f} to stay within "
            said += f"{steering.bound(space):.0f}°"
        source = source_of(**given)
        pictures = {"plain": made.images[0], "steered": made.images[1]}
        pictures |= {} if image is None else {"reference": image}
        return (
            plain,
            steered,
            said,
            written(steering, source),
            kept_file("steered", steering, source, pictures),
        )

    def draw_strip(prompt: str, image: Image.Image | None, seed: int, *values: Any) -> tuple:
        *controls, steps, guidance = values
        given = drawn_from(prompt, image, seed, steps, guidance)
        with errors_in_words():
            steering = steering_of(*controls)
            made = drawer().strip(steering, STRIP, **given)
        drifts = zip(STRIP, made.drift.tolist(), strict=True)
        said = " · ".join(f"{strength:g} times: {drift:.0f}°" for strength, drift in drifts)
        row = side_by_side([enlarged(i, 128) for i in made.images])
        pictures = {f"{s:g}-times": i for s, i in zip(STRIP, made.images, strict=True)}
        file = kept_file("strip", steering, source_of(**given), pictures | {"strip": row})
        return row, f"Strength and drift: {said}", file

    def kept_file(
        name: str, steering: Steering, source: Source, pictures: dict[str, Image.Image]
    ) -> str:
        folder = Path(tempfile.mkdtemp(dir=downloads.name))
        write_bundle(folder / f"{name}.zip", steering, space, source, pictures)
        return str(folder / f"{name}.zip")

    def find(query: str | None, modality_class: str | None) -> tuple:
        with errors_in_words():
            cards = search(space, query or "", modality_class or None, SHOWN)
        shown = [(top_images(c), c.title) for c in cards]
        return shown, [c.feature for c in cards], None, "Pick a feature to see what it does."

    def pick(
        found: list[int],
        prompt: str,
        image: Image.Image | None,
        seed: int,
        steps: int,
        guidance: float,
        event: gr.SelectData,
    ) -> tuple:
        feature = found[event.index]
        given = drawn_from(prompt, image, seed, steps, guidance)
        with errors_in_words():
            made = drawer().strip(Steering((Edit(feature, 1.0),)), PREVIEW, **given)
        (picked,) = cards(space, [feature])
        captions = "; ".join(picked.captions) or "none"
        said = f"**{picked.title}**, at strength -2, 0 and 2. Top captions: {captions}"
        return side_by_side([enlarged(i, 128) for i in made.images]), said, feature

    def add(feature: int | None, *slots: Any) -> list[Any]:
        if feature is None:
            raise gr.Error("Pick a feature first.")
        with errors_in_words():
            return shown_sliders(sliders_of(*slots).put(feature))

    def wish(words: str) -> list[Any]:
        with errors_in_words():
            choices = choose(space, words)
        found, words_left = choices[:SLOTS], {c.word for c in choices[SLOTS:]}
        took = [f"{title(space, c.feature)} for “{c.word}”, {c.found}" for c in found]
        said = "Took " + "; ".join(took)
        if lost := sorted(words_left - {c.word for c in found}):
            said += f". No slider was left for “{'”, “'.join(lost)}”"
        return [*shown_sliders(Sliders.of(as_edits(found))), said]

    def written(steering: Steering, source: Source) -> str:
        return json.dumps(steering_record(steering, space, source), indent=1)

    def restore(text: str) -> list[Any]:
        with errors_in_words():
            found, source = Controls.read(text, space)
        told = found.told(space)
        said = f"Kept with the sliders: {told}." if told else ""
        if source and source.image:
            said += " These edits were drawn from a reference; put it in again."
        if source and source.generator != generator:
            said += f" They were drawn by another generator, {source.generator}."
        return [
            source.prompt if source else gr.skip(),
            source.seed if source else gr.skip(),
            found.towards or "",
            found.blended,
            found.alpha,
            found.begin,
            found.end,
            found.max_drift,
            found.kept,
            *shown_sliders(found.sliders),
            *drawn_as(source),
            said,
        ]

    def drawn_as(source: Source | None) -> list[Any]:
        """Steps and guidance; what older edits do not say is what was usual."""
        if source is None:
            return [gr.skip(), gr.skip()]
        guidance = GUIDANCE if source.guidance is None else source.guidance
        return [source.steps or STEPS, guidance]

    stored = gr.BrowserState("", storage_key="mms-steering", secret="mms-steering")
    kept = gr.State(Steering())
    found_numbers, picked = gr.State([]), gr.State(None)
    gr.Markdown("# Steering: edit a picture's features")
    with gr.Row():
        with gr.Column(scale=3):
            prompt = gr.Textbox("woman: light skin tone", label="Prompt", elem_id="prompt")
            with gr.Accordion("Reference image", open=False):
                image = picture_input(label="Reference", height=180)
            words = gr.Textbox(label="Wishes", placeholder="more man, less woman", elem_id="wishes")
            take = gr.Button("Set sliders from wishes", size="sm")
            chosen, modes, strengths = [], [], []
            for place in range(1, SLOTS + 1):
                with gr.Group():
                    chosen.append(gr.Dropdown(choices, value=None, label=f"Feature {place}"))
                    with gr.Row():
                        modes.append(
                            gr.Dropdown(
                                MODES, value="add", label=f"Edit {place}", scale=2, min_width=150
                            )
                        )
                        strengths.append(
                            gr.Slider(
                                -STRONGEST,
                                STRONGEST,
                                0.0,
                                step=0.1,
                                label=f"Strength {place}",
                                scale=3,
                                min_width=180,
                            )
                        )
            reset = gr.Button("Reset sliders", size="sm")
            with gr.Accordion("Blend a class, steps, drift, seed", open=False):
                towards = gr.Textbox(label="Blend towards this prompt")
                blended = gr.Dropdown(classes, value=None, label="Within this class")
                alpha = gr.Slider(0.0, 1.0, 0.0, step=0.05, label="Blend")
                begin = gr.Slider(0.0, 0.9, 0.0, step=0.05, label="Edit from this share of steps")
                end = gr.Slider(0.05, 1.0, 1.0, step=0.05, label="Edit up to this share of steps")
                bound = gr.Slider(
                    0,
                    180,
                    0,
                    step=1,
                    label="Drift at most, in degrees",
                    info=f"0: the space's own bound, {Steering().bound(space):.0f}",
                )
                seed = gr.Number(0, label="Seed", precision=0)
                with gr.Row():
                    steps = gr.Number(
                        STEPS,
                        label="Denoising steps",
                        precision=0,
                        minimum=1,
                        maximum=MOST_STEPS,
                        min_width=120,
                    )
                    guidance = gr.Number(
                        GUIDANCE, label="Guidance, 1 for none", minimum=0, min_width=120
                    )
        with gr.Column(scale=4):
            go = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Row():
                plain = gr.Image(
                    label="Unedited",
                    alt_text="The picture without edits",
                    height=SIDE + 40,
                    buttons=[],
                )
                steered = gr.Image(
                    label="Steered",
                    alt_text="The picture with the edits",
                    height=SIDE + 40,
                    buttons=["download"],
                )
            said = gr.Markdown(HELP)
            more = gr.Button("Draw a strip over strengths", size="sm")
            strip = gr.Image(
                label="Strip over strengths",
                alt_text="The picture at each strength, from left to right",
                height=170,
                buttons=["download"],
            )
            strip_said = gr.Markdown()
            with gr.Row():
                keep = gr.DownloadButton("Download both with the edits", size="sm")
                keep_strip = gr.DownloadButton("Download the strip with the edits", size="sm")
    with gr.Accordion("Find features", open=True):
        with gr.Row():
            query = gr.Textbox(label="Word or number", elem_id="query", scale=2)
            of_class = gr.Dropdown([("Any class", ""), *classes], value="", label="Class")
            look = gr.Button("Find", scale=0, min_width=120)
        found = gr.Gallery(
            label="Features, each with its top images",
            show_label=False,
            elem_id="found",
            columns=6,
            height=420,
            allow_preview=False,
            buttons=[],
        )
        effect = gr.Image(
            label="Its effect at strength -2, 0 and 2",
            alt_text="The picture with the feature at strength -2, 0 and 2",
            height=170,
            buttons=[],
        )
        effect_said = gr.Markdown()
        use = gr.Button("Put it on a slider", size="sm")
    with gr.Accordion("Save, load, copy", open=True):
        code = gr.Code(label="These edits as JSON", language="json", elem_id="edits")
        with gr.Row():
            save = gr.Button("Save in this browser")
            load = gr.Button("Load what was saved")
            apply = gr.Button("Load the JSON above")
        state_said = gr.Markdown(elem_id="saved")
    slots = [*chosen, *modes, *strengths]
    controls = [towards, blended, alpha, begin, end, bound, kept, *slots]
    shown = [prompt, image, seed, *controls, steps, guidance]
    model: dict[str, Any] = {"trigger_mode": "always_last", **ONE_AT_A_TIME}
    gr.on(
        [go.click, prompt.submit, *(s.release for s in strengths), alpha.release],
        draw,
        shown,
        [plain, steered, said, code, keep],
        api_name="draw",
        **model,
    )
    more.click(draw_strip, shown, [strip, strip_said, keep_strip], api_name="strip", **model)
    gr.on(
        [look.click, query.submit, of_class.change],
        find,
        [query, of_class],
        [found, found_numbers, picked, effect_said],
        api_name="find",
        **model,
    )
    found.select(
        pick,
        [found_numbers, prompt, image, seed, steps, guidance],
        [effect, effect_said, picked],
        api_visibility="private",
        **model,
    )
    redraw: dict[str, Any] = {"fn": draw, "inputs": shown, "api_visibility": "private", **model}
    redraw["outputs"] = [plain, steered, said, code, keep]
    use.click(add, [picked, *slots], slots, api_visibility="private").success(**redraw)
    take.click(wish, words, [*slots, strip_said], api_name="wish", **model).success(**redraw)
    reset.click(
        lambda: [Steering(), *shown_sliders(Sliders()), ""],
        None,
        [kept, *slots, state_said],
        api_visibility="private",
    )
    save.click(
        lambda text: (text, "Saved in this browser."),
        code,
        [stored, state_said],
        api_visibility="private",
    )
    hidden: dict[str, Any] = {"api_name": "restore_saved", "api_visibility": "private"}
    restored = [prompt, seed, *controls, steps, guidance, state_said]
    load.click(restore, stored, restored, **hidden).success(**redraw)
    apply.click(restore, code, restored, api_name="restore").success(**redraw)


def build(
    space: FeatureSpace, drawer: Callable[[], SteeredGenerator], generator: str = "embedded"
) -> gr.Blocks:
    """The page."""
    with page("Steering") as demo:
        fill(space, drawer, generator)
    return demo


def sliders_of(*values: Any) -> Sliders:
    """From the page's sliders: all features, then all modes, then all strengths."""
    return Sliders(values[:SLOTS], values[SLOTS : 2 * SLOTS], values[2 * SLOTS :])


def shown_sliders(sliders: Sliders) -> list[Any]:
    """For the page's sliders: all features, then all modes, then all strengths."""
    return [*sliders.features, *sliders.modes, *sliders.strengths]


def enlarged(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A square picture at a size that can be looked at."""
    return image.resize((side, side), Image.Resampling.LANCZOS)


def top_images(found: Card) -> Image.Image:
    """A feature's four top images in a square; white where it has none."""
    images = [enlarged(image, 96) for image in found.images]
    images += [Image.new("RGB", (96, 96), "white")] * (4 - len(images))
    square = Image.new("RGB", (192, 192))
    for place, image in enumerate(images):
        square.paste(image, (place % 2 * 96, place // 2 * 96))
    return square


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--generator", default="embedded", help="Stable unCLIP folder or hub id")
    parser.add_argument("--space", default="embedded-ssl", help="of the generator's image encoder")
    add_encoder(parser)
    arguments = parser.parse_args()
    space = FeatureSpace.load(arguments.space, device=arguments.device, encoder=arguments.encoder)
    drawer = cache(lambda: SteeredGenerator.load(arguments.generator, space, arguments.device))
    launch(build(space, drawer, arguments.generator), port=arguments.port, css=CSS)


if __name__ == "__main__":
    run_in_words(main)
