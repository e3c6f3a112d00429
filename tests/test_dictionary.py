"""Dictionaries, their training, and their figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.dictionary import (
    DICTIONARIES,
    Dictionary,
    DictionaryConfig,
    SparseCode,
    TopKDictionary,
    TrainConfig,
    fit_dictionary,
    held_out,
    load_dictionary,
    reconstruction_figures,
    register,
    trainer,
)
from features.errors import UserError
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store

DIM = 16
SMALL = TrainConfig(
    features=48, k=4, batch_size=64, steps=60, checkpoint_steps=25, dead_samples=640
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Pairs that share sparse causes, with a gap between the modalities."""
    return make_store(tmp_path_factory.mktemp("stores") / "planted")


def make_store(path: Path, pairs: int = 600) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    causes = F.normalize(torch.randn(24, DIM, generator=generator), dim=1)
    present = torch.rand(pairs, 24, generator=generator) < 0.1
    shared = present.float() @ causes  # [pairs, dim]

    def embeddings(offset: float) -> Tensor:
        noise = 0.02 * torch.randn(pairs, DIM, generator=generator)
        return F.normalize(shared + noise + offset, dim=1)

    samples = sample_table([str(i) for i in range(pairs)], [["text"]] * pairs)
    config = StoreConfig("planted", "print", "pairs", "pairs-print", DIM)
    return write_store(path, embeddings(0.3), embeddings(-0.3), samples, config)


def topk(**changes: int | bool) -> TopKDictionary:
    settings = {"dim": DIM, "features": 48, "k": 4, "modality_bias": True, "seed": 1} | changes
    return TopKDictionary(DictionaryConfig(kind="topk", **settings))  # type: ignore[arg-type]


def identity() -> Dictionary:
    config = DictionaryConfig("identity", dim=DIM, features=DIM, k=DIM, modality_bias=False)
    return DICTIONARIES["identity"](config)


def unit(n: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_registry_refuses_duplicates_and_unknown_kinds(
    store: ActivationStore, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="taken"):
        register(TopKDictionary)
    with pytest.raises(UserError, match="unknown kind"):
        fit_dictionary(store, TrainConfig(kind="none"), tmp_path / "d", progress=False)


def test_topk_starts_with_the_transposed_decoder_and_unit_rows() -> None:
    dictionary = topk()
    assert torch.equal(dictionary.encoder, dictionary.decoder)
    torch.testing.assert_close(dictionary.directions.norm(dim=1), torch.ones(48))


def test_topk_keeps_the_k_largest() -> None:
    dictionary = topk()
    x = unit(20)
    z = dictionary.encode(x, "image")
    pre = (x - dictionary.mean("image")) @ dictionary.encoder.T
    for row, values in zip(z, pre, strict=True):
        kept = values.argsort(descending=True)[:4]
        expected = torch.zeros(48).scatter(0, kept, values[kept].relu())
        torch.testing.assert_close(row, expected)


@pytest.mark.parametrize("make", [topk, identity])
def test_sparse_and_dense_agree(make) -> None:  # type: ignore[no-untyped-def]
    dictionary = make()
    dictionary.set_means(unit(1, 5)[0], unit(1, 6)[0])
    x = unit(20)
    for modality in ("image", "text"):
        code = dictionary.encode_sparse(x, modality)
        dense = torch.zeros(20, dictionary.config.features).scatter(1, code.indices, code.values)
        torch.testing.assert_close(dense, dictionary.encode(x, modality))
        torch.testing.assert_close(
            dictionary.decode_sparse(code, modality), dictionary.decode(dense, modality)
        )


def test_sparse_decode_has_the_gradients_of_the_dense_one() -> None:
    dictionary = topk()
    code = dictionary.encode_sparse(unit(10), "image")
    values = code.values.detach().requires_grad_()
    dictionary.decode_sparse(SparseCode(values, code.indices), "image").square().sum().backward()
    sparse = values.grad, dictionary.decoder.grad
    values.grad = dictionary.decoder.grad = None
    dense = torch.zeros(10, 48).scatter(1, code.indices, values)
    dictionary.decode(dense, "image").square().sum().backward()
    for left, right in zip(sparse, (values.grad, dictionary.decoder.grad), strict=True):
        torch.testing.assert_close(left, right)


def test_identity_gives_the_signed_coordinates() -> None:
    x = unit(5)
    assert torch.equal(identity().encode(x, "text"), x)
    assert torch.equal(identity().directions, torch.eye(DIM))


def test_aux_moves_the_encoder_of_dead_features_only() -> None:
    dictionary = topk()
    x = unit(32)
    dead = torch.zeros(48, dtype=torch.bool)
    dead[:20] = True
    estimate = dictionary.decode_sparse(dictionary.encode_sparse(x, "image"), "image")
    dictionary.auxiliary_loss(x, estimate, dead).backward()
    assert dictionary.encoder.grad is not None and dictionary.decoder.grad is not None
    assert dictionary.encoder.grad[dead].abs().sum() > 0
    assert dictionary.encoder.grad[~dead].abs().sum() == 0
    assert dictionary.decoder.grad[~dead].abs().sum() == 0  # the residual is detached


def test_aux_is_zero_where_nothing_is_dead() -> None:
    dictionary = topk()
    x = unit(8)
    none = torch.zeros(48, dtype=torch.bool)
    assert dictionary.auxiliary_loss(x, x, none) == 0


def test_figures_match_the_definition() -> None:
    dictionary = topk()
    image, text = unit(50, 1) + 0.5, unit(50, 2) - 0.5
    batches = list(zip(image.split(7), text.split(7), strict=True))
    figures = reconstruction_figures(dictionary, batches)

    def fvu(x: Tensor, reconstruction: Tensor) -> float:
        mu = x.mean(0)
        return float((x - reconstruction).square().sum() / (x - mu).square().sum())

    codes = {"image": dictionary.encode(image, "image"), "text": dictionary.encode(text, "text")}
    codes = {modality: z.detach() for modality, z in codes.items()}
    again = {m: dictionary.decode(z, m).detach() for m, z in codes.items()}  # type: ignore[arg-type]
    for modality, x in (("image", image), ("text", text)):
        assert figures[modality]["fvu"] == pytest.approx(fvu(x, again[modality]), rel=1e-5)
        dead = float((codes[modality] == 0).all(0).float().mean())
        assert figures[modality]["dead"] == pytest.approx(dead)
    both = fvu(torch.cat([image, text]), torch.cat([again["image"], again["text"]]))
    assert figures["overall"]["fvu"] == pytest.approx(both, rel=1e-5)
    nonzero = (torch.cat([codes["image"], codes["text"]]) != 0).sum(1).float().mean()
    assert figures["overall"]["l0"] == pytest.approx(float(nonzero))
    for name in ("fvu", "l0"):
        low, value, high = (figures["overall"][name + end] for end in ("_low", "", "_high"))
        assert low <= value <= high and high - low < 0.2 * value  # type: ignore[operator]


def test_the_gap_between_modalities_flatters_no_headline() -> None:
    """A dictionary that knows the two means alone explains nothing within a modality."""
    generator = torch.Generator().manual_seed(0)
    gap = torch.zeros(8)
    gap[0] = 3
    image, text = torch.randn(2, 400, 8, generator=generator)
    image, text = image + gap, text - gap
    config = DictionaryConfig("topk", dim=8, features=8, k=1, modality_bias=True)
    dictionary = TopKDictionary(config).requires_grad_(False)
    dictionary.set_means(image.mean(0), text.mean(0))
    dictionary.encoder.zero_()
    figures = reconstruction_figures(dictionary, [(image, text)])
    for name in ("image", "text", "within"):
        assert figures[name]["fvu"] == pytest.approx(1, rel=1e-4)
    assert figures["overall"]["fvu"] < 0.5  # type: ignore[operator]
    error, spread = 0.0, 0.0  # a literal loop, of images that vary more than texts
    wide = [(2 * image, text)]
    for x, m in ((2 * image, "image"), (text, "text")):
        back = dictionary.decode(dictionary.encode(x, m), m)  # type: ignore[arg-type]
        for row, again in zip(x, back, strict=True):
            error += float((row - again).square().sum())
            spread += float((row - x.mean(0)).square().sum())
    within = reconstruction_figures(dictionary, wide)["within"]
    assert within["fvu"] == pytest.approx(error / spread, rel=1e-4)
    assert within["fvu_low"] < within["fvu"] < within["fvu_high"]  # type: ignore[operator]


def test_figures_of_a_constant_bias_are_not_hidden() -> None:
    x = unit(40)
    dictionary = identity()
    dictionary.decode_sparse = lambda code, modality: x + 1.0  # type: ignore[method-assign]
    figures = reconstruction_figures(dictionary, [(x, x)])
    expected = float(x.numel() / (x - x.mean(0)).square().sum())
    assert figures["image"]["fvu"] == pytest.approx(expected, rel=1e-5)


def test_figures_without_samples_are_none() -> None:
    assert reconstruction_figures(identity(), [])["overall"]["fvu"] is None


def test_held_out_pairs_are_about_a_tenth_and_follow_the_image() -> None:
    images = unit(5000)
    held = held_out.is_held_out(images)
    assert 0.08 < held.float().mean() < 0.12
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(held_out.is_held_out(images[order]), held[order])
    assert torch.equal(held_out.is_held_out(images.half().float()), held)
    assert held_out.is_held_out(images.to("meta")).device.type == "meta"


def test_training_explains_the_planted_causes(store: ActivationStore, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, steps=300)
    dictionary = fit_dictionary(store, config, tmp_path / "fit", progress=False)
    figures = dictionary.config.held_out
    assert figures is not None
    untrained = trainer.new_dictionary(store, config)
    untrained.set_means(*held_out.training_means(store)[0].float())
    before = reconstruction_figures(untrained, store.batches(100))
    for modality in ("image", "text", "overall"):
        assert figures[modality]["fvu"] < 0.5 * before[modality]["fvu"]  # type: ignore[operator]
        assert figures[modality]["l0"] <= 4  # type: ignore[operator]
    assert 0 < figures["image"]["samples"] < len(store) / 5  # type: ignore[operator]
    torch.testing.assert_close(dictionary.directions.norm(dim=1), torch.ones(48))


def test_modality_bias_takes_each_mean_out(store: ActivationStore, tmp_path: Path) -> None:
    apart = trainer.new_dictionary(store, SMALL)
    together = trainer.new_dictionary(store, dataclasses.replace(SMALL, modality_bias=False))
    means, pairs = held_out.training_means(store)
    rows = next(store.batches(len(store)))
    kept = ~held_out.is_held_out(rows[0])
    assert pairs == int(kept.sum())
    torch.testing.assert_close(means[1].float(), rows[1][kept].mean(0))
    apart.set_means(*means.float())
    together.set_means(*means.float())
    torch.testing.assert_close(apart.mean("text"), means[1].float())
    assert torch.equal(together.mean("image"), together.mean("text"))


def test_a_cut_off_training_ends_in_the_same_dictionary(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_dictionary(store, SMALL, tmp_path / "whole", progress=False)
    steps: list[int] = []
    forward = TopKDictionary.forward

    def killed(self: TopKDictionary, *args: Tensor):  # type: ignore[no-untyped-def]
        steps.append(1)
        if len(steps) == 40:
            raise KeyboardInterrupt
        return forward(self, *args)

    monkeypatch.setattr(TopKDictionary, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_dictionary(store, SMALL, tmp_path / "cut", progress=False)
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert left == {"checkpoint.safetensors", "metrics.jsonl"}
    resumed = fit_dictionary(store, SMALL, tmp_path / "cut", progress=False)
    assert len(steps) == 40 + SMALL.steps - 25
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert resumed.config == whole.config
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()


def test_save_and_load(store: ActivationStore, tmp_path: Path) -> None:
    fitted = fit_dictionary(store, SMALL, tmp_path / "d", progress=False)
    loaded = load_dictionary(tmp_path / "d")
    assert loaded.config == fitted.config
    assert loaded.config.encoder_fingerprint == "print"
    x = unit(5)
    assert torch.equal(loaded.encode(x, "text"), fitted.encode(x, "text"))
    record = json.loads((tmp_path / "d" / "config.json").read_text())
    assert record["schema"] == 1 and str(tmp_path) not in json.dumps(record)
    again = fit_dictionary(store, SMALL, tmp_path / "d", progress=False)  # loads
    assert torch.equal(again.means, fitted.means)
    with pytest.raises(UserError, match="other settings"):
        fit_dictionary(store, TrainConfig(k=3), tmp_path / "d", progress=False)


def test_identity_needs_no_training(store: ActivationStore, tmp_path: Path) -> None:
    dictionary = fit_dictionary(store, TrainConfig("identity"), tmp_path / "i", progress=False)
    assert dictionary.config.features == DIM
    image, _ = store.rows([0])
    assert torch.equal(dictionary.encode(image, "image"), image)
    assert dictionary.config.held_out["overall"]["fvu"] == 0  # type: ignore[index]


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(features=8, k=9),
        TrainConfig(k=0),
        TrainConfig(steps=0),
        TrainConfig("identity", features=3),
    ],
)
def test_impossible_settings_are_refused(
    store: ActivationStore, tmp_path: Path, config: TrainConfig
) -> None:
    with pytest.raises(UserError):
        fit_dictionary(store, config, tmp_path / "d", progress=False)


@pytest.mark.parametrize(
    "change", [{"k": "many"}, {"k": 10**6}, {"dim": -1}, {"features": None}, {"features": 2.5}]
)
def test_a_config_of_no_dictionary_is_refused(tmp_path: Path, change: dict) -> None:
    topk().save(tmp_path / "dictionary")
    config = tmp_path / "dictionary" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=r"config\.json: no dictionary is like this"):
        load_dictionary(tmp_path / "dictionary")


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_dictionary(tmp_path)
    topk().save(tmp_path)
    (tmp_path / "dictionary.safetensors").unlink()
    with pytest.raises(UserError, match="missing"):
        load_dictionary(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 1"):
        load_dictionary(tmp_path)


def swap_rows(weights: dict[str, Tensor]) -> None:
    weights["decoder"][[0, 1]] = weights["decoder"][[1, 0]]


def round_off(weights: dict[str, Tensor]) -> None:
    weights["encoder_bias"][0] += 1e-6


def other_means(weights: dict[str, Tensor]) -> None:
    weights["means"] += 0.1


@pytest.mark.parametrize("damage", [swap_rows, round_off, other_means])
def test_weights_that_were_not_saved_here_are_refused(tmp_path: Path, damage) -> None:
    topk().save(tmp_path)
    assert load_dictionary(tmp_path)
    weights = load_file(tmp_path / "dictionary.safetensors")
    damage(weights)
    save_file(weights, tmp_path / "dictionary.safetensors")
    with pytest.raises(UserError, match=r"dictionary\.safetensors: damaged or another"):
        load_dictionary(tmp_path)


def test_damaged_files_are_user_errors(tmp_path: Path) -> None:
    topk().save(tmp_path)
    whole = (tmp_path / "dictionary.safetensors").read_bytes()
    (tmp_path / "dictionary.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="does not match"):
        load_dictionary(tmp_path)
    (tmp_path / "dictionary.safetensors").write_bytes(whole)
    text = (tmp_path / "config.json").read_text()
    for content in (text[: len(text) // 2], "", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json"):
            load_dictionary(tmp_path)


def test_dictionaries_of_0_1_0_have_no_fingerprint_to_compare(tmp_path: Path) -> None:
    topk().save(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record.pop("fingerprint") == load_dictionary(tmp_path).fingerprint()
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert load_dictionary(tmp_path).config.features == 48


def test_the_progress_lines_class_shares_against_a_double_loop() -> None:
    dictionary = topk()
    image, text = unit(9, 1), unit(9, 2)
    counts = [0, 0, 0]
    with torch.no_grad():
        z, w = dictionary.encode(image, "image"), dictionary.encode(text, "text")
    for feature in range(48):
        ratios = [
            float(a / (a + b)) for a, b in zip(z[:, feature], w[:, feature], strict=True) if a + b
        ]
        if ratios:
            mds = sum(ratios) / len(ratios)
            counts[0 if mds < 1 / 3 else 2 if mds > 2 / 3 else 1] += 1
    shares = trainer.class_shares(dictionary, image, text)
    assert shares == pytest.approx([count / sum(counts) for count in counts])
    assert trainer.class_shares(dictionary, image[:0], text[:0]) == [0, 0, 0]


def test_projected_gradients_leave_the_rows_lengths_alone() -> None:
    dictionary = topk()
    dictionary.project_gradients()  # without a gradient there is nothing to do
    dictionary(unit(20, 1), unit(20, 2), torch.zeros(48, dtype=torch.bool)).loss.backward()
    gradient = dictionary.decoder.grad
    assert gradient is not None
    along = (gradient * dictionary.decoder).sum(1)
    expected = gradient - along[:, None] * dictionary.decoder.detach()
    assert along.abs().max() > 1e-4
    dictionary.project_gradients()
    torch.testing.assert_close(gradient, expected)
    assert (gradient * dictionary.decoder).sum(1).abs().max() < 1e-6
