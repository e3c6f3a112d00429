"""Which features are selected in training, exactly and by bf16 products."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from features.dictionary import (
    DICTIONARIES,
    DictionaryConfig,
    TopKDictionary,
    TrainConfig,
    fit_dictionary,
)
from features.dictionary.selection import (
    WORTH_BF16,
    candidate_places,
    exact_places,
    largest,
    resolve_selection,
)
from features.dictionary.sparse import outputs_at
from features.errors import UserError
from tests.test_dictionary import SMALL, make_store


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(dim: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    weight = F.normalize(drawn(features, dim, seed=seed + 1), dim=1)
    return weight, 0.1 * drawn(features, seed=seed + 2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(0, 1000),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_the_largest_are_those_of_a_sort(
    features: int, count: int, seed: int, dtype: torch.dtype
) -> None:
    """By their values: equal ones, of which bf16 has many, may stand for one another."""
    values = drawn(3, features, seed=seed).to(dtype)
    places = largest(values, min(count, features))
    assert places.dtype == torch.int64
    for row, found in zip(values, places, strict=True):
        assert len(set(found.tolist())) == len(found)
        expected = row.sort(descending=True).values[: len(found)].relu()
        assert torch.equal(row[found].relu().sort(descending=True).values, expected)


def test_rows_wider_than_16_bits_count() -> None:
    values = drawn(2, 8 * 70_000)
    for dtype in (torch.float32, torch.bfloat16):
        kept = values.to(dtype).gather(1, largest(values.to(dtype), 5)).sort().values
        assert torch.equal(kept, values.to(dtype).topk(5).values.sort().values)


def test_infinite_and_equal_values() -> None:
    values = torch.zeros(1, 100)
    values[0, [3, 50]] = torch.inf
    values[0, 99] = 2
    assert set(largest(values, 3)[0].tolist()) == {3, 50, 99}
    assert len(set(largest(torch.ones(1, 100), 7)[0].tolist())) == 7


def test_outputs_at_places_against_a_double_loop() -> None:
    x, (weight, _) = drawn(5, 6), layer(6, 20)
    indices = torch.tensor([[0, 19, 3], [1, 1, 2], [7, 8, 9], [19, 0, 0], [4, 5, 6]])
    found = outputs_at(x, weight, indices)
    for sample in range(5):
        for place in range(3):
            expected = sum(
                float(a) * float(b)
                for a, b in zip(x[sample], weight[indices[sample, place]], strict=True)
            )
            assert float(found[sample, place]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("n", "features"), [(7, 40), (1100, 64), (5, 1000)])
def test_generous_candidates_are_the_exact_selection(n: int, features: int) -> None:
    x, (weight, bias) = drawn(n, 32), layer(32, features)
    exact = dense(exact_places(x, weight, bias, 6), features)
    found = dense(candidate_places(x, weight, bias, 6, spare=features), features)
    assert torch.equal(found != 0, exact != 0)
    torch.testing.assert_close(found, exact)
    expected, places = (x @ weight.T + bias).topk(6)
    torch.testing.assert_close(exact, dense((expected, places), features))


def dense(code: tuple[Tensor, Tensor], features: int) -> Tensor:
    values, places = code
    return torch.zeros(len(values), features).scatter(1, places, values)


def recall(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> float:
    """Share of the true k largest, of those that are active, that are found."""
    values, true = exact_places(x, weight, bias, k)
    _, found = candidate_places(x, weight, bias, k)
    return float((true.unsqueeze(2) == found.unsqueeze(1)).any(2)[values > 0].double().mean())


def test_bf16_finds_nearly_all_of_the_largest() -> None:
    """Of a thousand samples that a few causes and an offset make, as embeddings are."""
    causes = F.normalize(drawn(200, 256, seed=3), dim=1)
    strength = drawn(1000, 200, seed=4).relu() * (drawn(1000, 200, seed=5) > 1.5)
    x = F.normalize(strength @ causes + 0.02 * drawn(1000, 256, seed=6), dim=1)
    weight, bias = layer(256, 2048)
    assert recall(x - x.mean(0), weight, bias, 32) >= 0.9999


def test_samples_whose_candidates_may_miss_are_selected_exactly() -> None:
    """More features than there are candidates differ by less than bf16 tells apart; the last sample
    has none that is active."""
    direction = F.normalize(drawn(1, 64), dim=1)
    near = F.normalize(direction + 1e-3 * drawn(300, 64, seed=1), dim=1)
    weight = torch.cat([near, F.normalize(drawn(100, 64, seed=2), dim=1)])
    x = torch.cat([direction + 0.1 * drawn(50, 64, seed=3), -direction])
    assert recall(x, weight, torch.zeros(400), 8) == 1


def test_gradients_with_candidates_are_those_of_a_dense_loop() -> None:
    """Of the FVU, through a code that is held dense, sample by sample."""
    dictionary = TopKDictionary(DictionaryConfig("topk", 16, 96, 5, modality_bias=False, seed=3))
    dictionary.exact_selection = False
    image, text = drawn(9, 16, seed=7), drawn(9, 16, seed=8)
    dictionary(image, text, torch.zeros(96, dtype=torch.bool)).loss.backward()
    found = [p.grad.clone() for p in dictionary.parameters() if p.grad is not None]
    dictionary.zero_grad()
    error = torch.zeros(())
    for x in torch.cat([image, text]):
        pre = dictionary.encoder @ x + dictionary.encoder_bias
        kept = torch.zeros(96).index_fill(0, pre.topk(5).indices, 1)
        error = error + (x - (pre.relu() * kept) @ dictionary.decoder).square().sum()
    (error / (image.square().sum() + text.square().sum())).backward()
    expected = [p.grad for p in dictionary.parameters()]
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "group", "matryoshka", "ncl"])
@pytest.mark.parametrize("has", [False, True])
@pytest.mark.parametrize("features", [WORTH_BF16 // 16 - 1, WORTH_BF16 // 16])
def test_auto_takes_the_faster(
    kind: str, has: bool, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.dictionary.selection.has_bf16_products", lambda _: has)
    dictionary = DICTIONARIES[kind](DictionaryConfig(kind, 16, features, 4, modality_bias=False))
    wanted = has and kind == "topk" and features * 16 >= WORTH_BF16
    cpu = torch.device("cpu")
    assert resolve_selection("auto", dictionary, cpu) == ("bf16" if wanted else "exact")
    assert resolve_selection("exact", dictionary, cpu) == "exact"


def test_the_selection_is_recorded_and_repeats(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    by_bf16 = dataclasses.replace(SMALL, selection="bf16")
    fits = [fit_dictionary(store, by_bf16, tmp_path / n, progress=False) for n in ("a", "b")]
    exact = fit_dictionary(store, SMALL, tmp_path / "exact", progress=False)
    assert torch.equal(fits[0].directions, fits[1].directions)
    assert fits[0].config.training is not None and exact.config.training is not None
    assert fits[0].config.training["selected"] == "bf16"
    assert exact.config.training["selected"] == "exact"  # too small to gain
    figures = [d.config.held_out["within"]["fvu"] for d in (fits[0], exact)]  # type: ignore[index]
    assert figures[0] == pytest.approx(figures[1], rel=0.05)


def test_impossible_selections_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(UserError, match="selection fp8: unknown; use one of auto, exact, bf16"):
        fit_dictionary(store, TrainConfig(selection="fp8"), tmp_path / "d", progress=False)
    for kind in ("group", "batchtopk", "matryoshka", "ncl"):
        config = dataclasses.replace(SMALL, kind=kind, selection="bf16")
        with pytest.raises(UserError, match=f"selection bf16: {kind} selects exactly"):
            fit_dictionary(store, config, tmp_path / kind, progress=False)
        assert not (tmp_path / kind).exists()


def test_dictionaries_from_before_the_setting_are_loaded(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    fitted = fit_dictionary(store, SMALL, tmp_path / "d", progress=False)
    path = tmp_path / "d" / "config.json"
    record = json.loads(path.read_text())
    del record["training"]["selection"]
    path.write_text(json.dumps(record))
    again = fit_dictionary(store, SMALL, tmp_path / "d", progress=False)  # loads
    assert torch.equal(again.directions, fitted.directions)
    with pytest.raises(UserError, match="other settings"):
        other = dataclasses.replace(SMALL, selection="exact")
        fit_dictionary(store, other, tmp_path / "d", progress=False)
