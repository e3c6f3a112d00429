"""Success of steering against how far it turns and what else it changes, as a page."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common import Result
from benchmarks.steering_edits import DRIFTS, METHODS

COLOURS = {
    "features": "#3730a3",
    "difference": "#6366f1",
    "score_set": "#0284c7",
    "smallest": "#14b8a6",
    "text_direction": "#d97706",
    "image_direction": "#b91c1c",
    "prompt": "#059669",
    "affine": "#111827",
    "random": "#9ca3af",
}
AXES = {"drift": "drift, degrees", "excess": "excess leakage"}


def plot(results: Sequence[Result], attributes: Sequence[str]) -> str:
    """An HTML page: a column an attribute; above success against drift, below against excess
    leakage, over the drifts; the star is the true twin."""
    from plotly.subplots import make_subplots

    found = {r.name: r.value for r in results}
    titles = [name.replace("_", " ") for name in attributes]
    figure = make_subplots(
        2, len(attributes), subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.18
    )
    for column, attribute in enumerate(attributes, 1):
        for row, measure in enumerate(AXES, 1):
            for method in METHODS:
                names = [f"{attribute}/{method}/{asked:g}" for asked in DRIFTS]
                figure.add_scatter(
                    x=[found[f"curve/{measure}/{name}"] for name in names],
                    y=[found[f"curve/success/{name}"] for name in names],
                    mode="lines+markers",
                    marker={"size": 5},
                    line={"color": COLOURS[method], "width": 2},
                    name=method.replace("_", " "),
                    legendgroup=method,
                    showlegend=column == row == 1,
                    row=row,
                    col=column,
                )
            figure.add_scatter(
                x=[found[f"{measure}/{attribute}/twin"]],
                y=[found[f"success/{attribute}/twin"]],
                mode="markers",
                marker={"size": 13, "symbol": "star", "color": "black"},
                name="true twin",
                showlegend=column == row == 1,
                row=row,
                col=column,
            )
            figure.update_xaxes(title_text=AXES[measure], row=row, col=column)
    figure.update_yaxes(range=[-0.03, 1.05])
    figure.update_yaxes(title_text="success", col=1)
    figure.update_layout(
        width=max(500, 330 * len(attributes)),
        height=620,
        margin={"t": 40},
        template="simple_white",
        legend={"orientation": "h", "y": -0.15},
    )
    return figure.to_html(include_plotlyjs=True)
