"""Robustness: attack a picture, see what the model takes it for and which features moved.

python -m demos.robustness
"""

from __future__ import annotations

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
    picture_gallery,
    picture_input,
    run_in_words,
)
from features.percent import percent
from features.reports.page import CLASS_NAMES
from features.space.space import FeatureSpace
from mms_apps.robustness.distances import EPS, NORMS, Norm, readable_eps
from mms_apps.robustness.moved import CSS as MOVED_CSS
from mms_apps.robustness.moved import LAYERS_SWITCH
from mms_apps.robustness.pictures import readable_change
from mms_apps.robustness.session import PictureAttacked, Session

LABELS = "man, woman"
ATTACK = "apgd"
NORM_NAMES = [("L-inf: the largest change of a pixel", "Linf"), ("L2: the length of all", "L2")]
CHANGE_WORDS = """
The change is magnified. Of each pixel the channel is drawn that changed most: orange where it was
raised, purple where it was lowered.
"""
CSS = """
#robustness-result img { image-rendering: pixelated; }
#verdict { font-size: 1.1rem; }
"""
CSS += MOVED_CSS
INTRO = """
# Robustness: how little must change?
Pick or upload a picture, name the labels to tell apart, and attack. The attack changes the
prediction that the model makes of the clean picture, and stays within eps.
"""


def fill(session: Session, named: str = LABELS) -> None:
    """Put the app on the page that is being built.

    Args:
        named: the labels that it opens with, by commas.
    """

    def attack(
        image: Image.Image | None,
        labels: str,
        kind: str,
        norm: Any,
        eps: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple:
        if image is None:
            raise gr.Error("Pick or upload a picture.")
        progress(0, desc=kind)
        with errors_in_words():
            found = session.attack(
                image, labels, kind, eps, norm,
                progress=lambda share: progress(share, desc=f"{kind}, {share:.0%}"),
            )  # fmt: skip
        return (
            verdict(found),
            found.before,
            found.after,
            found.clean,
            found.adversarial,
            gr.Image(found.change, label=f"Change, at most {readable_change(found.largest)}"),
            moved_rows(found),
            drift_rows(found),
            check_rows(found),
            moved_places(found),
        )

    def pick(event: gr.SelectData) -> Image.Image:
        return session.pictures[event.index][0]

    def possible(labels: str, norm: Any, kind: str) -> Any:
        with errors_in_words():
            names = session.attacks(labels, norm)
        return gr.Dropdown(choices=names, value=kind if kind in names else ATTACK)

    def sizes(norm: Any) -> Any:
        choices = eps_choices(norm)
        return gr.Dropdown(choices=choices, value=choices[2])

    gr.Markdown(INTRO)
    with gr.Row():
        with gr.Column(scale=2):
            gallery = picture_gallery(session.pictures, elem_id="robustness-pictures", height=270)
        image = picture_input(session.pictures[0][0], label="Picture", height=250)
    with gr.Row():
        labels = gr.Textbox(named, label="Labels, by commas", scale=2)
        kind = gr.Dropdown(
            session.attacks(named, "Linf"),
            value=ATTACK,
            label="Attack",
            allow_custom_value=True,
            scale=1,
        )
        norm = gr.Radio(NORM_NAMES, value=NORMS[0], label="Norm", scale=2)
    with gr.Row():
        eps = gr.Dropdown(
            eps_choices("Linf"),
            value="4/255",
            label="eps, of a list or your own",
            allow_custom_value=True,
            scale=2,
        )
        button = gr.Button("Attack", variant="primary", scale=1)
    said = gr.Markdown(elem_id="verdict")
    with gr.Row(elem_id="robustness-result"):
        clean = result_picture("Clean", "The picture before the attack")
        attacked = result_picture("Attacked", "The picture after the attack")
        change = result_picture("Change", "What the attack changed, magnified")
    gr.Markdown(CHANGE_WORDS)
    with gr.Row():
        before = gr.Label(label="Prediction, clean", num_top_classes=5)
        after = gr.Label(label="Prediction, attacked", num_top_classes=5)
    places = gr.HTML()
    with gr.Row():
        moved = gr.Dataframe(
            headers=["feature", "class", "before", "after"],
            label="Features that moved most",
            interactive=False,
            column_widths=["190px", "130px", "80px", "80px"],
            wrap=True,
        )
        drift = gr.Dataframe(
            headers=["class", "share of the change", "random features of that energy"],
            label="What moved, by class",
            interactive=False,
            column_widths=["140px", "120px", "160px"],
            wrap=True,
        )
    with gr.Accordion("Checks of this attack", open=False):
        checks = gr.Dataframe(
            headers=["check", "passed", "value", "at most", "what a failure means"],
            show_label=False,
            interactive=False,
            column_widths=["220px", "90px", "90px", "90px", "420px"],
            wrap=True,
        )
    results = [said, before, after, clean, attacked, change, moved, drift, checks, places]
    button.click(
        attack, [image, labels, kind, norm, eps], results, api_name="attack", **ONE_AT_A_TIME
    )
    gallery.select(pick, None, image, api_visibility="private")
    norm.change(sizes, norm, eps, api_visibility="private")
    for changed in (labels.blur, labels.submit, norm.change):
        changed(possible, [labels, norm, kind], kind, api_visibility="private")


def build(session: Session) -> gr.Blocks:
    """The page."""
    with page("Robustness") as demo:
        fill(session)
    return demo


def result_picture(label: str, said: str) -> gr.Image:
    """A place for a picture, `said` for those who do not see it."""
    return gr.Image(label=label, alt_text=said, height=260, buttons=[], interactive=False)


def eps_choices(norm: Norm) -> list[str]:
    """Sizes to choose from."""
    return [readable_eps(eps) for eps in EPS[norm]]


def verdict(found: PictureAttacked) -> str:
    """What happened, in a sentence."""
    if not found.reliable:
        failed = ", ".join(check.name for check in found.checks if not check.passed)
        return f"**Not to be relied on:** a check failed ({failed})."
    first, last = (max(p, key=p.__getitem__) for p in (found.before, found.after))
    if not found.fooled:
        return f"**Withstood:** still taken for *{first}*."
    kept = "" if found.rounded == last else f" Saved with 8 bits it is *{found.rounded}* again."
    return f"**Fooled:** *{first}* is taken for *{last}*.{kept}"


def moved_places(found: PictureAttacked) -> str:
    """The features that moved most, with what they rest on before and after."""
    if not found.moved:
        return "<p>No feature moved.</p>"
    title = "<h3>What moved most, and where it rests</h3>"
    return f'<div class="layers-scope">{title}{LAYERS_SWITCH}{found.moved_html}</div>'


def moved_rows(found: PictureAttacked) -> list[list[str]]:
    """The features that moved most."""
    return [
        [
            f"{f['feature']} {f['name']}",
            CLASS_NAMES[str(f["class"])],
            f"{f['before']:.3f}",
            f"{f['after']:.3f}",
        ]
        for f in found.moved
    ]


def drift_rows(found: PictureAttacked) -> list[list[str]]:
    """What moved, by class."""

    return [
        [CLASS_NAMES[group], percent(share), " to ".join(map(percent, found.control[group]))]
        for group, share in found.drift.items()
        if group in found.control
    ]


def check_rows(found: PictureAttacked) -> list[list[str]]:
    """The checks."""
    return [
        [
            check.name,
            "passed" if check.passed else "failed",
            "n/a" if check.value is None else f"{check.value:.3g}",
            f"{check.threshold:.3g}",
            check.advice,
        ]
        for check in found.checks
    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--space", default="embedded", help="folder, hub id or embedded")
    add_encoder(parser)
    arguments = parser.parse_args()
    space = FeatureSpace.load(arguments.space, device=arguments.device, encoder=arguments.encoder)
    session = Session.load(space)
    launch(build(session), port=arguments.port, css=CSS)


if __name__ == "__main__":
    run_in_words(main)
