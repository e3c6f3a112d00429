"""Plotly figures of explanations and audits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from features.modality import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNSCORED
from features.reports.page import CLASS_NAMES
from mms_apps.attributes.audit import Audit
from mms_apps.attributes.explain import Explanation

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = {
    IMAGE_DOMINANT: "#b8500f",
    CROSS_MODAL: "#6447b8",
    TEXT_DOMINANT: "#1a68a6",
    UNSCORED: "#566271",
}
SHARES = ("#1a68a6", "#e0a458", "#6447b8", "#4b9a7a", "#b8500f", "#566271")
"""Colours of an attribute's classes."""
SHOWN = 10
"""Features of an explanation, and roles of an audit, that are drawn."""


def contribution_figure(explanation: Explanation, off: list[str]) -> Figure:
    """What each feature adds to the logit; those of the modality classes `off` are pale."""
    from plotly.graph_objects import Bar, Figure

    shown = list(reversed(explanation.contributions[:SHOWN]))
    figure = Figure()
    for key, name in CLASS_NAMES.items():
        own = [c for c in shown if c.modality_class == key]
        if own:
            figure.add_trace(
                Bar(
                    x=[c.contribution for c in own],
                    y=[_short(c.name, c.feature) for c in own],
                    orientation="h",
                    name=f"{name}{', switched off' if key in off else ''}",
                    marker_color=COLOURS[key],
                    opacity=0.25 if key in off else 1.0,
                    hovertemplate="%{y}: %{x:+.2f}<extra></extra>",
                )
            )
    order = [_short(c.name, c.feature) for c in shown]
    figure.update_yaxes(categoryorder="array", categoryarray=order)
    parts = f"constant {explanation.constant:+.2f}"
    if explanation.unexplained:
        parts += f", unexplained {explanation.unexplained:+.2f}"
    title = f"added to the logit of “{explanation.label}”<br>{parts}, sum {explanation.total:+.2f}"
    figure.update_xaxes(title=title, zeroline=True)
    figure.update_layout(showlegend=True)
    return _styled(figure, 130 + 30 * len(shown))


def group_figure(audit: Audit) -> Figure:
    """Accuracy by group with intervals; small groups are pale."""
    from plotly.graph_objects import Figure, Scatter

    rows = list(reversed(audit.measures.groups))
    values = [row.accuracy.value for row in rows]
    figure = Figure(
        Scatter(
            x=values,
            y=[f"{row.group} ({row.samples})" for row in rows],
            mode="markers",
            marker={
                "size": 11,
                "color": COLOURS[TEXT_DOMINANT],
                "opacity": [1.0 if row.counted else 0.4 for row in rows],
            },
            error_x=_errors([row.accuracy for row in rows]),
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.add_vline(x=audit.measures.accuracy.value, line_dash="dash", line_color="#566271")
    figure.update_xaxes(
        title="accuracy (dashed: overall; pale: a small group)", range=[0, 1.02], tickformat=".0%"
    )
    return _styled(figure, 130 + 34 * len(rows))


def class_figure(audit: Audit) -> Figure:
    """Accuracy with one modality class alone and without it, beside random features."""
    from plotly.graph_objects import Bar, Figure

    rows = list(reversed(audit.classes))
    labels = [
        f"{'only' if row.what == 'keep' else 'without'} {CLASS_NAMES[row.modality_class]}"
        for row in rows
    ]
    figure = Figure()
    for name, estimates, colour in (
        ("random features", [row.random for row in rows], "#b6bfca"),
        ("the class", [row.accuracy for row in rows], COLOURS[CROSS_MODAL]),
    ):
        figure.add_trace(
            Bar(
                x=[e.value for e in estimates],
                y=labels,
                orientation="h",
                name=name,
                marker_color=colour,
                error_x=_errors(estimates),
                hovertemplate="%{y}: %{x:.1%}<extra></extra>",
            )
        )
    figure.update_xaxes(title="accuracy", range=[0, 1.02], tickformat=".0%")
    return _styled(figure, 130 + 46 * len(rows))


def lean_figure(audit: Audit) -> Figure:
    """Shares of the classes among predictions of unspecified samples, by role."""
    from plotly.graph_objects import Bar, Figure

    rows = list(reversed(audit.lean[: 1 + SHOWN]))
    figure = Figure()
    for place, name in enumerate(rows[0].shares if rows else []):
        figure.add_trace(
            Bar(
                marker_color=SHARES[place % len(SHARES)],
                x=[row.shares[name].value for row in rows],
                y=[f"{row.role} ({row.samples})" for row in rows],
                orientation="h",
                name=f"predicted {name}",
                hovertemplate="%{y}: %{x:.0%}<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="share of the predictions", range=[0, 1], tickformat=".0%")
    return _styled(figure, 150 + 28 * len(rows))


def _errors(estimates: list[Any]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [e.high - e.value for e in estimates],
        "arrayminus": [e.value - e.low for e in estimates],
        "thickness": 1.5,
    }


def _short(name: str, feature: int) -> str:
    """A feature's name and number, cut to fit beside its bar."""
    return f"{name if len(name) <= 26 else name[:25] + '…'} · {feature}"


def _styled(figure: Figure, height: int) -> Figure:
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 20, "t": 46, "b": 60},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        template="plotly_white",
        font={"family": "system-ui, DejaVu Sans, sans-serif", "size": 13},
        xaxis_title_font_size=13,
    )
    figure.update_yaxes(automargin=True)
    return figure
