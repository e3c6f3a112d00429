"""The kinds of dictionary beside topk and identity."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from features.dictionary import (
    DICTIONARIES,
    Dictionary,
    DictionaryConfig,
    TopKDictionary,
    fit_dictionary,
    load_dictionary,
    trained_kinds,
)
from features.dictionary.batchtopk import at_least
from features.dictionary.group import PENALTY, group_norms
from features.dictionary.matryoshka import nested_fvu
from features.dictionary.ncl import TEMPERATURE, NCLDictionary, relu_with_gelu_gradient
from features.dictionary.sparse import ActivePlaces
from features.store.store import ActivationStore
from tests.test_dictionary import DIM, SMALL, make_store, unit

TRAINED = [kind for kind in trained_kinds() if kind != "identity"]
AUTOENCODERS = [kind for kind in TRAINED if issubclass(DICTIONARIES[kind], TopKDictionary)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_store(tmp_path_factory.mktemp("stores") / "planted")


def make(kind: str) -> Dictionary:
    config = DictionaryConfig(kind, dim=DIM, features=48, k=4, modality_bias=True, seed=1)
    return DICTIONARIES[kind](config)


@pytest.mark.parametrize("kind", TRAINED)
def test_training_explains_and_ends_the_same_after_a_cut(
    kind: str, store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 300 if kind == "ncl" else SMALL.steps  # its decoder starts far from the encoder
    config = dataclasses.replace(SMALL, kind=kind, steps=steps)
    whole = fit_dictionary(store, config, tmp_path / "whole", progress=False)
    untrained = make(kind)
    untrained.set_means(*whole.means)
    image, text = next(store.batches(600))
    alive = torch.zeros(48, dtype=torch.bool)
    with torch.no_grad():
        before, after = (
            float(copy.deepcopy(d)(image, text, alive).loss) for d in (untrained, whole)
        )
    assert after < 0.8 * before
    torch.testing.assert_close(whole.directions.norm(dim=1), torch.ones(48))

    class Killed(Exception):
        pass

    forward, calls = DICTIONARIES[kind].forward, []

    def killed(self, *args):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 40:
            raise Killed
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DICTIONARIES[kind], "forward", killed)
        with pytest.raises(Killed):
            fit_dictionary(store, config, tmp_path / "cut", progress=False)
    resumed = fit_dictionary(store, config, tmp_path / "cut", progress=False)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    loaded = load_dictionary(tmp_path / "whole")
    assert torch.equal(loaded.encode(unit(5), "text"), whole.encode(unit(5), "text"))


@pytest.mark.parametrize("kind", TRAINED)
def test_sparse_and_dense_agree(kind: str) -> None:
    dictionary = make(kind)
    dictionary.set_means(unit(1, 5)[0], unit(1, 6)[0])
    for modality in ("image", "text"):
        code = dictionary.encode_sparse(unit(20), modality)  # type: ignore[arg-type]
        dense = dictionary.encode(unit(20), modality)  # type: ignore[arg-type]
        assert (dense >= 0).all() and (dense > 0).any()
        torch.testing.assert_close(
            dictionary.decode_sparse(code, modality),  # type: ignore[arg-type]
            dictionary.decode(dense, modality),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_dead_features_get_a_gradient_from_the_auxiliary_loss_alone(kind: str) -> None:
    gradients = []
    for any_dead in (False, True):
        dictionary = make(kind)
        with torch.no_grad():
            dictionary.encoder_bias[0] = -9.0  # type: ignore[index, operator]
        dead = torch.zeros(48, dtype=torch.bool)
        dead[0] = any_dead
        with torch.no_grad():
            dictionary.encoder_bias[0] += 9.0 * any_dead  # type: ignore[index, operator]
            dictionary.encoder[0] *= 0.01 if any_dead else 1.0  # type: ignore[index, operator]
        dictionary(unit(8, 1), unit(8, 2), dead).loss.backward()
        gradients.append(dictionary.encoder.grad[0].norm())  # type: ignore[index, union-attr]
    assert gradients[0] == 0
    assert gradients[1] > 0


def test_batchtopk_keeps_the_largest_of_the_batch_and_remembers_the_least() -> None:
    dictionary = make("batchtopk")
    x = torch.cat([unit(10, 1), unit(10, 2)])
    dictionary(x[:10], x[10:], torch.zeros(48, dtype=torch.bool))
    pre = x @ dictionary.encoder.T  # type: ignore[operator]
    least = pre.flatten().sort(descending=True).values[20 * 4 - 1]
    torch.testing.assert_close(dictionary.threshold, least)
    dictionary.threshold.fill_(0.3)  # type: ignore[operator]
    expected = torch.where(pre[:10] >= 0.3, pre[:10], 0.0)
    torch.testing.assert_close(dictionary.encode(x[:10], "image"), expected)
    for row, alone in zip(expected, x[:10], strict=True):  # independent of the batch
        torch.testing.assert_close(dictionary.encode(alone[None], "image")[0], row)


def test_a_threshold_that_nothing_reaches_gives_an_empty_code() -> None:
    code = at_least(torch.rand(3, 5), torch.tensor(2.0))
    assert code.values.shape == (3, 1) and not code.values.any()
    assert at_least(torch.rand(0, 5), torch.tensor(0.0)).values.shape == (0, 1)


def test_matryoshka_averages_the_errors_of_its_prefixes() -> None:
    dictionary = make("matryoshka")
    image, text = unit(6, 1), unit(6, 2)
    with torch.no_grad():
        step = dictionary(image, text, torch.zeros(48, dtype=torch.bool))
    x = torch.cat([image, text])
    pre = x @ dictionary.encoder.detach().T  # type: ignore[operator]
    z = torch.where(pre >= dictionary.threshold, pre, 0.0)
    rows = dictionary.directions.detach()
    losses = []
    for size in (3, 6, 12, 24, 48):
        error = 0.0
        for row, target in zip(z, x, strict=True):
            estimate = sum(row[f] * rows[f] for f in range(size))
            error += float((target - estimate).square().sum())
        losses.append(error / float(x.square().sum()))
    assert float(step.loss) == pytest.approx(sum(losses) / 5, rel=1e-4)
    assert float(step.fvu) == pytest.approx(losses[-1], rel=1e-4)


def test_group_norms_and_the_penalty_against_double_loops() -> None:
    activations = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    norms = group_norms(activations)
    for pair in range(3):
        for feature in range(5):
            z, w = (max(0.0, float(activations[pair + m * 3, feature])) for m in (0, 1))
            assert float(norms[pair, feature]) == pytest.approx(math.hypot(z, w), abs=1e-6)
    dictionary = make("group")
    x = torch.cat([unit(6, 1), unit(6, 2)])
    with torch.no_grad():
        step = dictionary(x[:6], x[6:], torch.zeros(48, dtype=torch.bool))
        code = dictionary._selected_in_training(x)  # type: ignore[operator]
        places = ActivePlaces(code.indices, 48)
        nested = nested_fvu(dictionary, x, code.values, places, step.fvu)  # type: ignore[arg-type]
    apart = 0.0
    for pair in range(6):
        for place in range(4):
            apart += abs(float(code.values[pair, place] - code.values[pair + 6, place])) / 6
    assert float(step.loss - nested) == pytest.approx(PENALTY * apart, rel=1e-4)


def test_group_gives_a_pair_one_set_of_features() -> None:
    dictionary = make("group")
    x = torch.cat([unit(6, 1), unit(6, 2)])
    pre = x @ dictionary.encoder.detach().T  # type: ignore[operator]
    code = dictionary._selected_in_training(x)  # type: ignore[operator]
    assert torch.equal(code.indices[:6], code.indices[6:])
    largest = group_norms(pre).argsort(dim=1, descending=True)[:, :4]
    assert torch.equal(code.indices[:6].sort(1).values, largest.sort(1).values)


def test_ncl_is_the_symmetric_contrast_of_non_negative_outputs() -> None:
    dictionary = NCLDictionary(make("ncl").config)
    image, text = unit(4, 1), unit(4, 2)
    step = dictionary(image, text, torch.zeros(48, dtype=torch.bool))
    z = [(x @ dictionary.encoder.T).relu() for x in (image, text)]
    contrast = 0.0
    for a, b in (z, z[::-1]):
        for i in range(4):
            scores = [float(F.cosine_similarity(a[i], b[j], dim=0)) / TEMPERATURE for j in range(4)]
            contrast += (math.log(sum(map(math.exp, scores))) - scores[i]) / 8
    assert float(step.loss - step.fvu) == pytest.approx(contrast / math.log(4), rel=1e-4)


def test_relu_forward_with_gelus_gradient() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    y = relu_with_gelu_gradient(x)
    torch.testing.assert_close(y, x.relu())
    y.sum().backward()
    other = x.detach().clone().requires_grad_()
    F.gelu(other).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
