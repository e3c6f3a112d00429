"""Attributes of images: predict, see why, switch feature classes off, audit.

python -m demos.attributes
"""

from __future__ import annotations

import html
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from demos import correction
from demos.common import (
    ONE_AT_A_TIME,
    add_encoder,
    errors_in_words,
    gr,
    launch,
    options,
    page,
    picture_gallery,
    picture_html,
    picture_input,
    run_in_words,
)
from features.reports.page import CLASS_NAMES, MODALITY_CLASSES
from features.space.space import FeatureSpace
from features.store.credits import credit_line
from mms_apps.attributes.model import METHODS
from mms_apps.attributes.plots import (
    class_figure,
    contribution_figure,
    group_figure,
    lean_figure,
)
from mms_apps.attributes.report import METHOD_NAMES, TOO_SMALL, against_chance
from mms_apps.attributes.workbench import Picture, Workbench

if TYPE_CHECKING:
    from mms_apps.attributes.audit import Audit

CAUTION = """
**What this is not.** The labels are the catalogue's own words for its drawings. A prediction says
which of these words a picture resembles; it does not say who a person is. Gender is not something
that can be seen in a picture of somebody: don't use this to sort, judge or serve people.
"""
OF_YOURS = """
The labels are those of your pairs. A prediction says which of these words a picture resembles to
the model. Where they are words for people, it does not say who a person is: don't use this to sort,
judge or serve people.
"""
OF_GARMENTS = """
The labels are those that the people gave who photographed their clothes. Features and model are
fitted on some photographers' garments and shown and audited on those of others.
"""


@dataclass(frozen=True)
class World:
    """What is shown of pairs that ship with the package, as `Workbench` takes it.

    title: of the page.
    said: what a reader should know first, in Markdown.
    """

    title: str
    said: str
    space: str
    train: str
    pairs: str
    attributes: tuple[str, ...]
    groups: tuple[str, ...]
    role: str | None = None

    def workbench(self, space: FeatureSpace, work: Path) -> Workbench:
        """The workbench of this world, with embeddings in a folder."""
        return Workbench(
            space, self.train, self.pairs, self.attributes, self.groups, work, role=self.role
        )


EMOJI = World(
    "Attributes",
    CAUTION,
    "embedded",
    "embedded:train",
    "embedded:heldout",
    ("gender", "skin_tone"),
    ("skin_tone", "gender"),
    "role",
)
GARMENTS = World(
    "Garments",
    OF_GARMENTS,
    "garments",
    "photos:garments-train",
    "photos:garments-test",
    ("label",),
    ("kids", "sender"),
)
WORLDS = {world.space: world for world in (EMOJI, GARMENTS)}
SHOWN_FEATURES = 5
SHOWN_EXEMPLARS = 5
CSS = """
.exemplars { display: grid; gap: .5rem; }
.exemplars figure { display: flex; gap: .4rem; align-items: center; margin: 0; flex-wrap: wrap; }
.exemplars figcaption { flex: 1 1 11rem; font-size: .9rem; }
.exemplars img { width: 64px; height: 64px; object-fit: contain; border-radius: 6px; margin: 0; }
"""
CSS += correction.CSS


def fill(
    workbench: Workbench, shown: Any, title: str = EMOJI.title, first_words: str = OF_YOURS
) -> None:
    """Put the app on the page that is being built.

    Args:
        shown: the event by which it first runs.
        title: of the app; the endpoints of another than EMOJI's end in it.
        first_words: what a reader should know first, in Markdown.
    """
    methods = [(METHOD_NAMES[method].capitalize(), method) for method in METHODS]
    classes = [(CLASS_NAMES[name], name) for name in MODALITY_CLASSES]

    def predict(
        image: Image.Image | None, attribute: str, method: Any, off: list[str]
    ) -> tuple[Any, Any, Any, str]:
        if image is None:
            return None, None, None, "Pick or upload an image."
        with errors_in_words():
            answer = workbench.answer(image, attribute, method, off)
            rows = workbench.exemplars(answer.explanation, SHOWN_FEATURES, SHOWN_EXEMPLARS)
        figure = contribution_figure(answer.explanation, off)
        return answer.before, answer.after, figure, exemplar_html(rows)

    def first_pictures(image: Image.Image | None) -> tuple[Any, Any, Any]:
        if image is not None:
            return gr.skip(), gr.skip(), gr.skip()
        with errors_in_words():
            pictures = workbench.pictures
        gallery = [(picture.image, picture.caption) for picture in pictures]
        return gallery, pictures[0].image, said_of(pictures[0])

    def pick(event: gr.SelectData) -> tuple[Image.Image, str]:
        picture = workbench.pictures[event.index]
        return picture.image, said_of(picture)

    def run_audit(attribute: str, method: Any, group: str) -> tuple[str, Any, Any, Any]:
        with errors_in_words():
            found = workbench.audit(attribute, method, group)
        return audit_text(found), group_figure(found), class_figure(found), lean_figure(found)

    slug = title.lower()
    ending = "" if title == EMOJI.title else f"_{slug}"
    gr.Markdown(f"# {title}: predict, see why, switch features off")
    gr.Markdown(first_words)
    with gr.Row():
        attribute = gr.Radio(
            list(workbench.attributes), value=workbench.attributes[0], label="Attribute"
        )
        method = gr.Radio(methods, value="linear_probe", label="Method")
    with gr.Tab("Predict"):
        with gr.Row():
            with gr.Column(scale=2):
                gallery = picture_gallery(elem_id=f"{slug}-pictures", height=330)
                image = picture_input(label="Picked, or upload one", height=190)
                said = gr.Markdown(elem_id=f"{slug}-said")
            with gr.Column(scale=3):
                off = gr.CheckboxGroup(classes, label="Switch features off")
                with gr.Row():
                    before = gr.Label(label="With all features", num_top_classes=5)
                    after = gr.Label(label="With what is left on", num_top_classes=5)
                gr.Markdown("### What each feature adds, the strongest first")
                why = gr.Plot(show_label=False)
                seen = gr.HTML(label="What these features stand for")
        inputs, outputs = [image, attribute, method, off], [before, after, why, seen]
        gallery.select(pick, None, [image, said], api_visibility="private")
        image.upload(lambda: "", None, said, api_visibility="private")
        first = [gallery, image, said]
        shown(first_pictures, image, first, api_visibility="private", **ONE_AT_A_TIME)
        gr.on(
            [image.change, attribute.change, method.change, off.change],
            predict,
            inputs,
            outputs,
            api_name=f"predict{ending}",
            trigger_mode="always_last",
            **ONE_AT_A_TIME,
        )
    with gr.Tab("Audit"):
        with gr.Row():
            group = gr.Radio(list(workbench.groupings), value=workbench.groups[0], label="By group")
            start = gr.Button("Audit", variant="primary", scale=0, min_width=160)
        summary = gr.Markdown()
        gr.Markdown("### Accuracy by group, with 95% intervals")
        by_group = gr.Plot(show_label=False)
        gr.Markdown("### Which modality carries it, beside random features of the same energy")
        by_class = gr.Plot(show_label=False)
        listed = workbench.role is not None
        gr.Markdown("### Where no label is given, which way does it lean?", visible=listed)
        leaning = gr.Plot(show_label=False, visible=listed)
        start.click(
            run_audit,
            [attribute, method, group],
            [summary, by_group, by_class, leaning],
            api_name=f"audit{ending}",
            **ONE_AT_A_TIME,
        )
    with gr.Tab("Correct"):
        correction.fill(workbench, attribute, method, ending)


def build(workbench: Workbench, title: str = EMOJI.title, first_words: str = OF_YOURS) -> gr.Blocks:
    """The page."""
    with page(title) as demo:
        fill(workbench, demo.load, title, first_words)
    return demo


def said_of(picture: Picture) -> str:
    """A picked picture's caption, and whose it is."""
    lines = [html.escape(picture.caption)]
    if picture.credit:
        lines.append(f"<small>Image: {html.escape(picture.credit)}</small>")
    return "<br>".join(lines)


def exemplar_html(rows: list[dict]) -> str:
    """Exemplars by feature."""
    by_feature: dict[str, list[str]] = {}
    for row in rows:
        contribution = row["contribution"]
        kind = CLASS_NAMES[contribution.modality_class]
        name = f"{contribution.name or 'unnamed'} ({contribution.feature}, {kind})"
        by_feature.setdefault(name, []).append(
            picture_html(row["thumbnail"], row["caption"], credit_line(row))
        )
    figures = "".join(
        f"<figure><figcaption>{html.escape(name)}</figcaption>{''.join(images)}</figure>"
        for name, images in by_feature.items()
    )
    return f'<div class="exemplars">{figures}</div>'


def audit_text(audit: Audit) -> str:
    """An audit in words."""
    m = audit.measures
    gaps = TOO_SMALL
    if m.worst_group:
        gaps = (
            f"in the worst group, **{m.worst_group}**, {m.worst_accuracy.value:.1%}. Gap: "
            f"{against_chance(m.gap)}; difference in TPR: {against_chance(m.tpr_difference)}"
        )
    return (
        f"**{m.accuracy.value:.1%}** of {m.samples} predictions are right "
        f"({m.accuracy.low:.1%} to {m.accuracy.high:.1%}); {gaps}. "
        f"Smallest group: {m.smallest_group} ({m.smallest_samples}). A probe finds the group in "
        f"{audit.leakage.value:.1%} of the samples (most frequent group: "
        f"{audit.leakage_chance:.1%})."
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--space", default="embedded")
    add_encoder(parser)
    parser.add_argument("--train", help="labelled pairs to fit on [default: the space's own]")
    parser.add_argument("--pairs", help="pairs to show and audit [default: the space's own]")
    parser.add_argument("--attribute", action="append", help="once for each")
    parser.add_argument("--group", action="append", help="attribute to audit by, once for each")
    parser.add_argument("--role", help="attribute by which to list unspecified samples")
    parser.add_argument("--image-column", help="column that names or holds the images")
    parser.add_argument("--caption-column", help="column of the captions, which are not needed")
    arguments = parser.parse_args()
    own = WORLDS.get(arguments.space, EMOJI)
    world = replace(own, title=EMOJI.title, said=OF_YOURS) if arguments.train else own
    with tempfile.TemporaryDirectory() as work:
        workbench = Workbench(
            FeatureSpace.load(arguments.space, device=arguments.device, encoder=arguments.encoder),
            arguments.train or own.train,
            arguments.pairs or own.pairs,
            arguments.attribute or own.attributes,
            arguments.group or own.groups,
            Path(work),
            role=arguments.role or (None if arguments.train else own.role),
            image_column=arguments.image_column,
            caption_column=arguments.caption_column,
        )
        launch(build(workbench, world.title, world.said), port=arguments.port, css=CSS)


if __name__ == "__main__":
    run_in_words(main)
