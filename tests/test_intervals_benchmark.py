"""The benchmark of intervals, in miniature."""

from __future__ import annotations

from benchmarks import agreement_picture, intervals


def test_rows_of_mds_and_agreement() -> None:
    rows = {row.name: row for row in intervals.mds_rows(0, features=60)}
    names = {f"mds_{t}/n_{n}" for t in intervals.TRUTHS for n in intervals.PAIRS}
    assert set(rows) == {f"{kind}/{name}" for kind in ("coverage", "width") for name in names}
    for name in names:
        assert rows[f"coverage/{name}"].value > 0.85
        assert 0 < rows[f"width/{name}"].value < 0.8
    found = intervals.agreement_rows(0, features=60)
    lowest = found[-1]
    assert lowest.name == "agreement/coverage"
    assert lowest.value == min(row.value for row in found if row.unit == "share") > 0.85


def test_the_picture_shows_what_its_words_say() -> None:
    (mds, agreement), (other_mds, other_agreement) = agreement_picture.scores(
        *agreement_picture.two_features()
    )
    assert abs(mds - 0.5) < 0.05 > abs(other_mds - 0.5)
    assert agreement > 0.8 and other_agreement == 0
