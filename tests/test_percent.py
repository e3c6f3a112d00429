"""Shares in words."""

from __future__ import annotations

import math

import pytest

from features.analysis.compare import cell
from features.bootstrap import Estimate
from features.percent import percent
from mms_apps.attributes.report import _share
from mms_apps.robustness.report import _spread


@pytest.mark.parametrize(
    ("share", "digits", "words"),
    [
        (0.0, 0, "0%"),
        (1.0, 0, "100%"),
        (1 - 1e-12, 0, "100%"),  # a mean of ones in float32, say
        (0.5, 0, "50%"),
        (0.996, 0, "99.6%"),
        (0.9996, 0, "99.96%"),
        (0.9996, 1, "99.96%"),
        (0.0004, 0, "0.04%"),
        (0.004, 1, "0.4%"),
        (-0.0004, 1, "-0.04%"),
        (-1.0, 0, "-100%"),  # of differences
        (-0.9996, 0, "-99.96%"),
        (-1e-9, 1, "0.0%"),
        (0.0, 1, "0.0%"),
        (0.00001, 0, "0.001%"),
        (math.nan, 0, "n/a"),
        (None, 0, "n/a"),
    ],
)
def test_nearly_all_is_not_all_and_hardly_any_not_none(
    share: float | None, digits: int, words: str
) -> None:
    assert percent(share, digits) == words


def test_reports_say_shares_alike() -> None:
    assert _share(299.9 / 300) == "99.97%"
    assert _spread([0.0, 299 / 300]) == "0% to 99.7%"
    assert cell(Estimate(0.9996, 0.99, 1.0), True) == "99.96% (99% to 100%)"
    assert cell(Estimate(0.3, math.nan, math.nan), True) == "30%"
    assert cell(Estimate(0.3, math.nan, math.nan), False) == "0.30"
