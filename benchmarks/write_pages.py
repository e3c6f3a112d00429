"""The pages of results, from their templates and the benchmarks' JSON.

    python -m benchmarks.write_pages

`benchmarks/pages/NAME.md` becomes `docs/results/NAME.md`: `{{gap/none .3}}` stands for the row
`gap/none` of `docs/results/NAME.json` with three digits, its interval in brackets. `{{... value}}`
gives the value alone, `{{... range}}` the interval alone, `{{... points}}` hundredths, and
`{{... percent}}` these with their sign. `{{SOURCE:gap/none .3}}` takes the row from elsewhere
(`SOURCES`, or `docs/results/SOURCE.json`). A comparison's spaces have rows such as
`embedded,topk/agreement`.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from features.embedded import ENCODERS
from features.files import write_whole

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "benchmarks" / "pages"
RESULTS = ROOT / "docs" / "results"
SOURCES = {
    "encoder-embedded": ENCODERS / "embedded" / "held_out.json",
    "encoder-embedded-ssl": ENCODERS / "embedded-ssl" / "held_out.json",
}
FIGURE = re.compile(
    r"\{\{(?:(?P<source>[\w-]+):)?(?P<name>\S+) \.(?P<digits>\d)(?P<how>(?: \w+)*)\}\}"
)


def rendered(name: str) -> str:
    """The page of a template.

    Raises:
        KeyError: the template names a row that its JSON does not have.
    """

    def figure(match: re.Match[str]) -> str:
        row = rows(match["source"] or name)[match["name"]]
        return written(row, int(match["digits"]), match["how"].split())

    return FIGURE.sub(figure, (TEMPLATES / f"{name}.md").read_text(encoding="utf-8"))


@cache
def rows(source: str) -> dict[str, dict[str, Any]]:
    """A source's rows by name."""
    record = json.loads(SOURCES.get(source, RESULTS / f"{source}.json").read_text())
    if "spaces" in record:
        return {
            f"{space['label'].replace(' ', '')}/{key}": {
                "value": estimate["value"],
                "ci_low": estimate["low"],
                "ci_high": estimate["high"],
                "n": space["features"],
            }
            for space in record["spaces"]
            for key, estimate in space["estimates"].items()
        }
    if "results" not in record:
        return record
    return {row["name"]: row for row in record["results"]}


def written(row: dict[str, Any], digits: int, how: list[str]) -> str:
    """A value with its interval in brackets, or with the counts where all or none did it."""
    scale = 100 if {"points", "percent"} & set(how) else 1
    sign = "%" if "percent" in how else ""
    value, low, high = (row[key] for key in ("value", "ci_low", "ci_high"))
    if "value" in how or low is None:
        return number(scale * value, digits) + sign
    ends = f"{number(scale * low, digits)}{sign} to {number(scale * high, digits)}{sign}"
    if "range" in how:
        return ends
    counted = row.get("unit", "share").startswith("share")
    if low == high and value in (0, 1) and scale == 1 and counted:
        ends = f"{round(value * row['n'])} of {row['n']}"
    return f"{number(scale * value, digits)}{sign} ({ends})"


def number(value: float, digits: int) -> str:
    """A figure, without the sign of a zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def names() -> list[str]:
    """The pages that there are."""
    return sorted(path.stem for path in TEMPLATES.glob("*.md"))


def main() -> None:
    for name in names():
        write_whole(RESULTS / f"{name}.md", rendered(name).encode())


if __name__ == "__main__":
    main()
