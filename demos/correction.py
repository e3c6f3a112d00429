"""The tab of the attributes demo that groups wrong predictions, and proposes and checks edits."""

from __future__ import annotations

import html
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from demos.common import ONE_AT_A_TIME, errors_in_words, gr, layered_html
from features.reports.layers import switch
from features.reports.page import CLASS_NAMES
from mms_apps.attributes.correction.checking import Counts
from mms_apps.attributes.correction.correcting import Correction, GroupCorrection
from mms_apps.attributes.correction.files import EDITS, LOOK_AGAIN
from mms_apps.attributes.correction.report import Mistake, drawn_mistakes
from mms_apps.attributes.workbench import Workbench

SHOWN = 8
"""Wrong predictions of a group that are shown."""
INTRO = """
The wrong predictions on one half of the pairs, in groups by the feature that made them wrong. For
each group an edit is proposed, and checked on the other half. The edits that may be accepted can be
downloaded: unpacked, `mms attributes predict --edit edits/1 --model edits/1/model` uses the first.
`mms attributes correct` does the same and takes held-out pairs for a further check.
"""
CSS = """
.corrections { display: grid; gap: 1.2rem; }
.corrections article { padding: .9rem; border-radius: 8px; min-width: 0;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); }
.corrections h3 { margin: 0 0 .3rem; font-size: 1.05rem; overflow-wrap: anywhere; }
.corrections .mistakes { display: grid; gap: .6rem; margin: .6rem 0; font-size: .8rem;
  line-height: 1.25; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
.corrections figure { margin: 0; overflow-wrap: anywhere; }
.corrections img { width: 80px; height: 80px; object-fit: contain; margin: 0 0 .2rem;
  border-radius: 6px; }
.corrections table { border-collapse: collapse; font-size: .88rem; width: 100%; }
.corrections :is(th, td) { text-align: left; padding: .25rem .4rem; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--border-color-primary); }
"""


def fill(workbench: Workbench, attribute: Any, method: Any, ending: str) -> None:
    """Put the tab's content on the page that is being built.

    Args:
        attribute, method: the choices that it works with.
        ending: of the endpoint's name.
    """

    downloads = tempfile.TemporaryDirectory()

    def run(attribute: str, method: Any, group: str) -> tuple[str, Any]:
        with errors_in_words():
            found = workbench.correct(attribute, method, group)
            shown = [workbench.mistakes(found, one, SHOWN) for one in found.groups]
            page = correction_html(found, shown)
        if not found.accepted:
            return page, gr.DownloadButton("No edit may be accepted", value=None, interactive=False)
        path = Path(tempfile.mkdtemp(dir=downloads.name)) / f"edits-{attribute}.zip"
        workbench.write_accepted(found, path)
        many = len(found.accepted)
        label = "Download the accepted edit" if many == 1 else f"Download {many} accepted edits"
        return page, gr.DownloadButton(label, value=str(path), interactive=True)

    gr.Markdown(INTRO)
    with gr.Row():
        group = gr.Radio(
            list(workbench.groups), value=workbench.groups[0], label="Groups to protect"
        )
        start = gr.Button("Find what went wrong", variant="primary", scale=0, min_width=240)
    keep = gr.DownloadButton("Nothing is found yet", size="sm", interactive=False)
    said = gr.HTML()
    start.click(
        run, [attribute, method, group], [said, keep], api_name=f"correct{ending}", **ONE_AT_A_TIME
    )


def correction_html(found: Correction, shown: list[list[Mistake]]) -> str:
    """All groups."""
    first = f"<p>{found.wrong} of {len(found.half)} predictions on the half searched are wrong."
    if not found.groups:
        return f"{first} No feature made three or more of them wrong: nothing is proposed.</p>"
    articles = "".join(
        article_html(found, number, one, some)
        for number, (one, some) in enumerate(zip(found.groups, shown, strict=True), start=1)
    )
    choice = switch() if 'class="layer"' in articles else ""
    return (
        f'{first}</p><div class="layers-scope">{choice}<div class="corrections">{articles}</div>'
        "</div>"
    )


def article_html(found: Correction, number: int, one: GroupCorrection, shown: list[Mistake]) -> str:
    """One group: its feature, its pictures, the edit and what it does."""
    row = found.model.space.features.slice(one.mistakes.feature, 1).to_pylist()[0]
    name = html.escape(row["name"] or "unnamed")
    drawn = drawn_mistakes(found, one.mistakes.feature, shown)
    figures = "".join(
        f"<figure>{layered_html(small, m.caption, layer, m.credit) if small else ''}"
        f"{html.escape(m.label)}, taken for {html.escape(m.predicted)}</figure>"
        for m, (small, layer) in zip(shown, drawn, strict=True)
    )
    return (
        f"<article><h3>{number}. {one.mistakes.size} wrong by {name} "
        f"({row['feature']}, {CLASS_NAMES[row['class']]})</h3>"
        f"<p>Without this feature {one.mistakes.mended} wrong predictions would be right, and "
        f"{one.mistakes.broken} right ones wrong.</p>"
        f'<div class="mistakes">{figures}</div>{proposal_html(number, one)}</article>'
    )


def proposal_html(number: int, one: GroupCorrection) -> str:
    """What is proposed, the advice, and the counts behind it."""
    why = html.escape(one.advice.why)
    if one.proposal is None:
        return f"<p><strong>Nothing is proposed:</strong> {why}.</p>"
    advice, kept = "Advised against", "Not in the download."
    if one.advice.accept:
        again = date.today() + LOOK_AGAIN
        advice = "Accept"
        kept = f"In the download as {EDITS}/{number}; look at it again by {again.isoformat()}."
    rows = "".join(
        counts_html(name, check.counts)
        + "".join(counts_html(f"in {row.group}", row.counts) for row in check.groups)
        for name, check in one.checks.items()
    )
    return (
        f"<p><strong>{advice}: {html.escape(one.proposal.in_words())}.</strong> {why}. {kept}</p>"
        "<table><thead><tr><th>pairs</th><th>mended</th><th>broken</th><th>p</th>"
        f"<th>accuracy</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def counts_html(name: str, counts: Counts) -> str:
    """A row of the table."""
    return (
        f"<tr><td>{html.escape(name)} ({counts.samples})</td><td>{counts.mended}</td>"
        f"<td>{counts.broken}</td><td>{counts.p:.2g}</td>"
        f"<td>{counts.before.value:.1%} → {counts.after.value:.1%}</td></tr>"
    )
