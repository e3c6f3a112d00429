"""Dictionaries of other libraries compute here what their libraries compute, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from features.dictionary import (
    DICTIONARIES,
    Dictionary,
    DictionaryConfig,
    TrainConfig,
    fit_dictionary,
    load_dictionary,
    reconstruction_figures,
)
from features.dictionary.convert import Autoencoder, write_saelens
from features.dictionary.foreign import read_autoencoder
from features.errors import UserError
from features.modality import MODALITIES
from features.space.space import FeatureSpace
from features.store import StoreConfig, sample_table, write_store
from tests.autoencoders.record import EMBEDDINGS, FEATURES, HERE, K, embeddings

RECORDED = sorted(path.name for path in HERE.iterdir() if (path / "computed.safetensors").is_file())
GIVEN: dict[str, dict[str, Any]] = {
    name: {"k": K} for name in RECORDED if name.startswith("overcomplete-topk")
}
"""What a file does not say."""


def source_of(name: str) -> Path:
    folder = HERE / name
    files = [path for path in folder.iterdir() if path.name == "sae.pt"]
    return files[0] if files else folder


def read(name: str) -> Autoencoder:
    return read_autoencoder(source_of(name), **GIVEN.get(name, {}))


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-5 * expected.norm())


@pytest.mark.parametrize("name", RECORDED)
def test_it_computes_what_its_library_computes(name: str) -> None:
    x, computed = embeddings(), load_file(HERE / name / "computed.safetensors")
    dictionary = read(name).dictionary()
    for modality in MODALITIES:
        activations = dictionary.encode(x, modality)
        assert close(activations, computed["activations"])
        code = dictionary.encode_sparse(x, modality)
        for found in (
            dictionary.decode_sparse(code, modality),
            dictionary.decode(activations, modality),
        ):
            assert close(found, computed["reconstruction"])
    assert not close(computed["reconstruction"], x)
    active = (computed["activations"] != 0).float().mean()
    assert 0.01 < active < 0.99


@pytest.mark.parametrize("name", RECORDED)
def test_from_a_file_to_scored_features(name: str, tmp_path: Path, mms: Callable) -> None:
    x = embeddings()
    store = store_of(x, tmp_path / "store")
    options = [item for key, value in GIVEN.get(name, {}).items() for item in (f"--{key}", value)]
    code, out, err = mms("convert", source_of(name), "--out", tmp_path / "d", *options)
    assert code == 0, err
    assert f"{FEATURES}" in out or "128 features" in out
    steps = ("--store", store, "--dictionary", tmp_path / "d", "--out", tmp_path / "space")
    code, _, err = mms("score", *steps)
    assert code == 0, err
    space = FeatureSpace.load(tmp_path / "space", device="cpu")
    assert close(
        space.encode_images(x), load_file(HERE / name / "computed.safetensors")["activations"]
    )
    code, _, err = mms("report", tmp_path / "space", "--out", tmp_path / "report.html")
    assert code == 0, err


def store_of(x: torch.Tensor, path: Path, fingerprint: str = "e" * 64) -> Path:
    """Images are every other row, so that pairs differ."""
    config = StoreConfig("e", fingerprint, "p", "p", x.shape[1])
    rows = torch.cat([x] * 5)
    samples = sample_table([str(n) for n in range(len(rows))], [["a word"]] * len(rows))
    write_store(path, rows, rows.roll(1, 0), samples, config)
    return path


def formula(kind: str, x: torch.Tensor, parts: dict[str, torch.Tensor], k: int) -> Any:
    """MSAE's forward pass, as its paper and code have it: (activations, reconstruction)."""
    mean, scale = parts["mean"], 3.0
    pre = ((x - mean) * scale - parts["pre_bias"]) @ parts["encoder"] + parts["latent_bias"]
    if kind.startswith("TopK"):
        values, places = pre.topk(k, dim=1)
        values = values.relu() if kind == "TopKReLU" else values
        z = torch.zeros_like(pre).scatter(1, places, values)
    elif kind == "JumpReLU":
        z = torch.where(pre > parts["activation.log_threshold"].exp(), pre, 0.0).relu()
    else:
        z = pre.relu()
    return z, (z @ parts.get("decoder", parts["encoder"].T) + parts["pre_bias"]) / scale + mean


MSAE = {
    "TopKReLU": "40_128_TopKReLU_5_RW_False_False_0.0_cc3m_128.pt",
    "TopK": "40_128_TopK_30_True_False_0.0_cc3m_128.pth",
    "JumpReLU": "40_128_JumpReLU_False_False_0.0_cc3m_128.pt",
    "ReLU": "40_128_ReLU_3_False_False_0.0_cc3m_128.pt",
}


def msae(folder: Path, kind: str, name: str | None = None) -> tuple[Path, dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    parts = {
        "pre_bias": 0.1 * torch.randn(128, generator=generator),
        "encoder": 0.2 * torch.randn(128, 40, generator=generator),
        "latent_bias": 0.1 * torch.randn(40, generator=generator),
        "latents_activation_frequency": torch.zeros(40, dtype=torch.int64),
    }
    if kind != "TopK":
        parts["decoder"] = torch.randn(40, 128, generator=generator)
    if kind == "JumpReLU":
        parts["activation.log_threshold"] = torch.randn(40, generator=generator) - 2
    mean = embeddings().mean(0)
    record = {"model": parts, "mean_center": mean, "scaling_factor": 3.0, "target_norm": 1.0}
    path = folder / (name or MSAE[kind])
    torch.save(record, path)
    return path, parts | {"mean": mean}


@pytest.mark.parametrize("kind", MSAE)
def test_msae_by_its_formula(tmp_path: Path, kind: str) -> None:
    path, parts = msae(tmp_path, kind)
    x = embeddings()
    activations, reconstruction = formula(kind, x, parts, 30 if kind == "TopK" else K)
    dictionary = read_autoencoder(path).dictionary()
    assert close(dictionary.encode(x, "image"), activations)
    code = dictionary.encode_sparse(x, "text")
    assert close(dictionary.decode_sparse(code, "text"), reconstruction)


SAEV = {
    "schema 1, older": {"schema": 1, "cls": "TopK", "cfg": {"d_vit": 128, "top_k": 7}},
    "schema 1": {
        "schema": 1,
        "cls": "SparseAutoencoderConfig",
        "cfg": {"activation": {"cls": "Relu", "params": {}}},
    },
    "schema 2": {"schema": 2, "cfg": {"activation": {"cls": "BatchTopK", "params": {"top_k": 9}}}},
}


@pytest.mark.parametrize("name", SAEV)
def test_newer_files_of_saev_by_their_formula(tmp_path: Path, name: str) -> None:
    """They subtract no bias from the input."""
    shapes = {"W_enc": (128, 40), "b_enc": (40,), "W_dec": (40, 128), "b_dec": (128,)}
    generator = torch.Generator().manual_seed(4)
    state = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    with (tmp_path / "sae.pt").open("wb") as file:
        file.write((json.dumps(SAEV[name]) + "\n").encode())
        torch.save(state, file)
    x = embeddings()
    pre = x @ state["W_enc"] + state["b_enc"]
    k = {"schema 1, older": 7, "schema 2": 9}.get(name)
    z = pre.relu()
    if k is not None:
        z = torch.zeros_like(pre).scatter(1, pre.topk(k).indices, pre.topk(k).values)
    dictionary = read_autoencoder(tmp_path / "sae.pt").dictionary()
    assert close(dictionary.encode(x, "image"), z)
    assert close(dictionary.decode(z, "image"), z @ state["W_dec"] + state["b_dec"])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["relu", "jumprelu", "topk", "signed_topk"]),
    st.floats(0.1, 20),
)
def test_the_formula_and_the_inputs_it_is_of(seed: int, kind: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).double()

    threshold = draw(12) if kind == "jumprelu" else None
    k = 4 if "topk" in kind else None
    one = Autoencoder(
        "x", draw(12, 6), draw(12), draw(12, 6), draw(6), draw(6), k, threshold, "signed" in kind
    )
    x, mean = draw(9, 6), draw(6)
    found = one.of_inputs(mean, scale)
    assert one.kind == kind
    inner = (x - mean) * scale
    pre = (inner - one.input_bias) @ one.encoder.T + one.encoder_bias
    z = pre if kind == "signed_topk" else pre.relu()
    if k is not None:
        z = torch.zeros_like(z).scatter(1, pre.topk(k).indices, z.gather(1, pre.topk(k).indices))
    if threshold is not None:
        z = z * (pre > threshold)
    expected = (z @ one.decoder + one.bias) / scale + mean
    dictionary = found.dictionary()
    code = dictionary.encode_sparse(x.float(), "image")
    assert (dictionary.decode_sparse(code, "image") - expected).norm() <= 1e-4 * expected.norm()
    figures = reconstruction_figures(dictionary, [(x.float(), x.float())])
    assert figures["image"]["l0"] == pytest.approx(float((z != 0).sum(1).double().mean()))


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka", "group", "relu", "jumprelu"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_saelens_format_and_back(tmp_path: Path, kind: str, modality: str) -> None:
    dictionary = some_dictionary(kind)
    write_saelens(dictionary, tmp_path / "out", modality)
    back = read_autoencoder(tmp_path / "out").dictionary()
    x = embeddings()
    code = dictionary.encode_sparse(x, modality)
    assert close(back.encode(x, modality), dictionary.encode(x, modality))
    assert close(
        back.decode_sparse(back.encode_sparse(x, modality), modality),
        dictionary.decode_sparse(code, modality),
    )
    record = json.loads((tmp_path / "out" / "cfg.json").read_text())
    weights = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert weights["W_enc"].shape == (record["d_in"], record["d_sae"]) == (128, FEATURES)


def some_dictionary(kind: str) -> Dictionary:
    """With means of their own, biases and a threshold."""
    generator = torch.Generator().manual_seed(0)
    config = DictionaryConfig(kind, 128, FEATURES, K, modality_bias=True)
    dictionary = DICTIONARIES[kind](config).eval().requires_grad_(False)
    for name, tensor in dictionary.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(0.1 * noise.abs() if name == "threshold" else tensor + 0.1 * noise)
    return dictionary


@pytest.mark.parametrize("kind", ["identity", "ncl", "signed_topk"])
def test_what_saelens_cannot_compute_is_refused(tmp_path: Path, kind: str) -> None:
    size = 128 if kind == "identity" else FEATURES
    config = DictionaryConfig(kind, 128, size, size if kind == "identity" else K, False)
    with pytest.raises(UserError, match=f"{kind}: SAELens has no architecture"):
        write_saelens(DICTIONARIES[kind](config), tmp_path / "out", "image")


def test_the_command_writes_for_saelens(tmp_path: Path, mms: Callable) -> None:
    some_dictionary("topk").save(tmp_path / "d")
    code, _, err = mms("convert", tmp_path / "d", "--to", "saelens", "--out", tmp_path / "s")
    assert code == 2 and "--modality" in err
    options = ("--to", "saelens", "--modality", "text", "--out", tmp_path / "s")
    code, out, err = mms("convert", tmp_path / "d", *options)
    assert code == 0 and "40 features of 128 dimensions" in out, err
    expected = load_dictionary(tmp_path / "d").encode(embeddings(), "text")
    assert close(
        read_autoencoder(tmp_path / "s").dictionary().encode(embeddings(), "text"), expected
    )
    code, _, err = mms("convert", tmp_path / "d", *options)
    assert code == 2 and "not empty" in err
    code, _, err = mms(
        "convert", "features/embedded/spaces/embedded", *options[:-1], tmp_path / "space"
    )
    assert code == 0, err


def test_the_encoder_may_be_named(
    tmp_path: Path, clip_folder: Path, imagefolder: Path, mms: Callable
) -> None:
    """A converted dictionary in `mms run`: of this encoder, of any, of another."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 16, generator=generator)
    weights = {"W_enc": rows.T.contiguous(), "W_dec": rows * 0.1}
    weights |= {"b_enc": torch.zeros(20), "b_dec": torch.zeros(16)}
    (tmp_path / "sae").mkdir()
    save_file(weights, tmp_path / "sae" / "sae_weights.safetensors")
    (tmp_path / "sae" / "cfg.json").write_text('{"architecture": "standard"}')
    encoder = f"local-dir:{clip_folder}"
    steps = [
        ("convert", tmp_path / "sae", "--encoder", encoder, "--out", tmp_path / "own"),
        ("convert", tmp_path / "sae", "--out", tmp_path / "any"),
    ]
    for step in steps:
        code, _, err = mms(*step)
        assert code == 0, err
    run = ("run", "--pairs", imagefolder, "--encoder", encoder)
    for name in ("own", "any"):
        code, _, err = mms(*run, "--dictionary", tmp_path / name, "--out", tmp_path / f"run-{name}")
        assert code == 0, err
        space = FeatureSpace.load(tmp_path / f"run-{name}" / "space", device="cpu")
        assert len(space) == 20 and space.config.dictionary["kind"] == "relu"
    code, _, err = mms(*run, "--dictionary", tmp_path / "own", "--k", 3, "--out", tmp_path / "r")
    assert code == 2 and "brings its own dictionary" in err
    code, _, err = mms(
        "run", "--pairs", "embedded", "--dictionary", tmp_path / "own", "--out", tmp_path / "r"
    )
    assert code == 2 and "made for the encoder local-dir:tiny" in err
    code, _, err = mms(
        "convert", HERE / "sparsify", "--encoder", encoder, "--out", tmp_path / "wrong"
    )
    assert code == 2 and "128 dimensions" in err


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "signed_topk"])
def test_they_are_not_trained_here(tmp_path: Path, kind: str) -> None:
    store_of(embeddings(), tmp_path / "s")
    from features.store import ActivationStore

    with pytest.raises(UserError, match=f"{kind}: not trained here; fit one of"):
        fit_dictionary(ActivationStore.open(tmp_path / "s"), TrainConfig(kind), tmp_path / "d")


def changed(folder: Path, **settings: Any) -> Path:
    record = json.loads((folder / "cfg.json").read_text()) | settings
    (folder / "cfg.json").write_text(json.dumps(record))
    return folder


def reweighted(folder: Path, file: str, **weights: torch.Tensor | None) -> Path:
    state = load_file(folder / file) | weights
    save_file({n: t for n, t in state.items() if t is not None}, folder / file)
    return folder


REFUSED: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "layer norm": (
        "saelens-standard",
        lambda f: changed(f, normalize_activations="layer_norm"),
        "its own mean and deviation",
    ),
    **{
        f"{activation} in {name} of {sae}": (
            f"saelens-{sae}",
            lambda f, name=name, activation=activation: changed(f, **{name: activation}),
            f"the activation is {activation}",
        )
        for name in ("activation_fn", "activation_fn_str")
        for activation, sae in (
            ("tanh-relu", "standard"),
            ("jumprelu", "standard"),
            ("gelu", "topk"),
        )
    },
    "unknown norm": (
        "saelens-standard",
        lambda f: changed(f, normalize_activations="by_two"),
        "inputs are normalised by by_two",
    ),
    "architecture": ("saelens-standard", lambda f: changed(f, architecture="temporal"), "temporal"),
    "finetuning": (
        "saelens-standard",
        lambda f: changed(f, finetuning_scaling_factor=True),
        "finetuning",
    ),
    "no b_enc": (
        "saelens-standard",
        lambda f: reweighted(f, "sae_weights.safetensors", b_enc=None),
        "no b_enc among",
    ),
    "shape": (
        "saelens-standard",
        lambda f: reweighted(f, "sae_weights.safetensors", b_enc=torch.zeros(3)),
        r"encoder_bias is \[3\]",
    ),
    "NaN": (
        "saelens-standard",
        lambda f: reweighted(
            f, "sae_weights.safetensors", b_enc=torch.full((FEATURES,), torch.nan)
        ),
        "encoder_bias holds NaN",
    ),
    "k": ("saelens-topk", lambda f: changed(f, k=1000), "k 1000: must be at least 1"),
    "transcoder": ("sparsify", lambda f: changed(f, transcode=True), "transcoder"),
    "skip": ("sparsify", lambda f: changed(f, skip_connection=True), "skip connection"),
    "groups": ("sparsify", lambda f: changed(f, activation="groupmax"), "groupmax"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_computed_here_is_refused(tmp_path: Path, what: str) -> None:
    name, change, message = REFUSED[what]
    shutil.copytree(HERE / name, tmp_path / "sae")
    with pytest.raises(UserError, match=message):
        read_autoencoder(change(tmp_path / "sae")).dictionary()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("TopKReLU", "renamed.pt", "give the file its name back"),
        ("TopKReLU", "40_128_TopKReLU_5_False_True_0.0_x.pt", "its own mean and deviation"),
        ("TopKReLU", "40_128_TopKReLU_5_False_False_30.0_x.pt", "soft cap"),
        ("TopKReLU", "40_128_BatchTopKReLU_5_False_False_0.0_x.pt", "BatchTopKReLU"),
        ("TopKReLU", "40_128_TopKabs_5_False_False_0.0_x.pt", "TopKabs"),
    ],
)
def test_names_of_msae_files_are_read(tmp_path: Path, kind: str, name: str, message: str) -> None:
    path, _ = msae(tmp_path, kind, name)
    with pytest.raises(UserError, match=message):
        read_autoencoder(path)


def test_what_a_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--k.*--threshold"):
        read_autoencoder(HERE / "overcomplete-topk" / "sae.pt")
    found = read_autoencoder(HERE / "overcomplete-topk" / "sae.pt", threshold=0.2)
    assert found.kind == "jumprelu" and float(found.threshold.max()) == pytest.approx(0.2)
    shutil.copy(HERE / "dictionary_learning-AutoEncoderTopK" / "ae.pt", tmp_path / "ae.pt")
    with pytest.raises(UserError, match=r"config\.json beside it"):
        read_autoencoder(tmp_path / "ae.pt")
    assert read_autoencoder(tmp_path, k=K).k == K


def _saelens_topk(folder: Path, **changes: Any) -> Path:
    """A SAELens folder of a TopK autoencoder, with changes to its config or its weights."""
    config = {"architecture": "topk", "k": 2, "d_in": 4, "d_sae": 8}
    state = {
        "W_enc": torch.eye(4, 8),
        "W_dec": torch.eye(8, 4),
        "b_enc": torch.zeros(8),
        "b_dec": torch.zeros(4),
    }
    state |= {name: value for name, value in changes.items() if name in state}
    config |= {name: value for name, value in changes.items() if name not in state}
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps({n: v for n, v in config.items() if v != ""}))
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("setting", ["activation_fn", "activation_fn_str"])
@pytest.mark.parametrize(
    ("architecture", "activation", "k"),
    [("standard", "relu", None), ("standard", "topk", 2), ("topk", "topk", 2), ("topk", None, 2)],
)
def test_activations_that_are_known_are_read(
    tmp_path: Path, setting: str, architecture: str, activation: str | None, k: int | None
) -> None:
    changes = {setting: activation, "architecture": architecture}
    assert read_autoencoder(_saelens_topk(tmp_path / "s", **changes)).k == k


@pytest.mark.parametrize("own", [{"k": ""}, {"k": "", "activation_fn_kwargs": None}])
def test_a_config_without_k_is_asked_for_it(tmp_path: Path, own: dict) -> None:
    folder = _saelens_topk(tmp_path / "s", **own)
    with pytest.raises(UserError, match="--k"):
        read_autoencoder(folder)
    assert read_autoencoder(folder, k=3).k == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": "many"}, "config or weights are not as the library writes them"),
        ({"activation_fn_kwargs": [], "k": ""}, "--k"),
        ({"W_enc": torch.zeros(3)}, "not as the library writes them"),
        ({"W_dec": torch.zeros(6, 4)}, "decoder is [6, 4] beside"),
        ({"b_enc": torch.zeros(9)}, "encoder_bias is [9] beside"),
        ({"b_dec": torch.full((4,), float("nan"))}, "bias holds NaN"),
    ],
)
def test_damaged_folders_are_user_errors(
    tmp_path: Path, changes: dict, message: str, mms: Callable
) -> None:
    folder = _saelens_topk(tmp_path / "s", **changes)
    code, _, err = mms("convert", folder, "--out", tmp_path / "out")
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_its_config_names_it(tmp_path: Path) -> None:
    folder = _saelens_topk(tmp_path / "s")
    (folder / "cfg.json").unlink()
    with pytest.raises(UserError, match=r"cfg\.json: no such file"):
        read_autoencoder(folder)


@pytest.mark.parametrize("name", ["mlp_blocks.0.0.weight", "attention_blocks.0.norm1.weight"])
def test_encoders_with_hidden_layers_are_refused(tmp_path: Path, name: str) -> None:
    state = torch.load(HERE / "overcomplete-topk" / "sae.pt", weights_only=True)
    torch.save(state | {f"encoder.{name}": torch.ones(3)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="hidden layers"):
        read_autoencoder(tmp_path / "x.pt", k=K)


def test_checkpoints_find_the_config_above_them(tmp_path: Path) -> None:
    folder = HERE / "dictionary_learning-BatchTopKSAE"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    shutil.copy(folder / "ae.pt", tmp_path / "checkpoints" / "ae_1000.pt")
    assert read_autoencoder(tmp_path / "checkpoints" / "ae_1000.pt").kind == "jumprelu"


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    for name, content in (
        ("ae.pt", {"encoder.weight": Evil()}),
        ("module.pt", torch.nn.Linear(2, 2)),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: cannot be read as weights alone"):
            read_autoencoder(tmp_path / name)
    with (tmp_path / "sae.pt").open("wb") as file:
        file.write(b'{"schema": 2}\n')
        torch.save(Evil(), file)
    with pytest.raises(UserError, match="weights alone"):
        read_autoencoder(tmp_path / "sae.pt")
    assert not (tmp_path / "touched").exists()


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_autoencoder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no autoencoder that is known"):
        read_autoencoder(tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"no encoder\.weight among weight"):
        read_autoencoder(tmp_path / "x.pt")
    torch.save({"epoch": 3}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="holds no weights"):
        read_autoencoder(tmp_path / "y.pt")
    torch.save([torch.zeros(3)], tmp_path / "z.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_autoencoder(tmp_path / "z.pt")
    shutil.copytree(HERE / "sparsify", tmp_path / "cut")
    weights = tmp_path / "cut" / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        read_autoencoder(tmp_path / "cut")


def test_the_recorded_embeddings_are_real_and_of_unit_length() -> None:
    x = load_file(HERE / EMBEDDINGS)["x"]
    assert torch.allclose(F.normalize(x), x, atol=1e-5) and x.shape == (20, 128)


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_a_file_of_a_folder_stands_for_the_folder(file: str) -> None:
    folder = HERE / "saelens-topk"
    whole, named = (read_autoencoder(place) for place in (folder, folder / file))
    assert named.k == whole.k and torch.equal(named.encoder, whole.encoder)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("saelens-standard", {"k": 4}),
        ("dictionary_learning-AutoEncoder", {"k": 4}),
        ("saelens-topk", {"threshold": 0.1}),
    ],
)
def test_what_a_file_has_not_is_not_taken(name: str, option: dict[str, Any]) -> None:
    (word,) = option
    with pytest.raises(UserError, match=f"has no {word}; leave --{word} out"):
        read_autoencoder(HERE / name, **option)


CHECKPOINTS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, Any]]] = {
    "lightning": lambda state: {
        "epoch": 1,
        "state_dict": {f"model.{n}": v for n, v in state.items()},
    },
    "parallel": lambda state: {"step": 1, "model": {f"module.{n}": v for n, v in state.items()}},
    "compiled": lambda state: {f"module._orig_mod.{n}": v for n, v in state.items()},
    "trainer": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("name", ["overcomplete-topk", "dictionary_learning-AutoEncoderTopK"])
def test_checkpoints_of_trainings_are_read(tmp_path: Path, name: str, kind: str) -> None:
    source = next((HERE / name).glob("*.pt"))
    state = torch.load(source, weights_only=True)
    torch.save(CHECKPOINTS[kind](state), tmp_path / "last.ckpt")
    found, expected = (read_autoencoder(path, k=K) for path in (tmp_path / "last.ckpt", source))
    assert torch.equal(found.encoder, expected.encoder) and found.k == expected.k == K


def test_weights_in_a_file_of_safetensors(tmp_path: Path) -> None:
    source = HERE / "dictionary_learning-AutoEncoderTopK" / "ae.pt"
    state = torch.load(source, weights_only=True)
    save_file(
        {name: value.contiguous() for name, value in state.items()}, tmp_path / "a.safetensors"
    )
    found, expected = (read_autoencoder(path, k=K) for path in (tmp_path / "a.safetensors", source))
    assert torch.equal(found.decoder, expected.decoder)


def test_weights_of_several_kinds_name_the_config(tmp_path: Path) -> None:
    state = {"W_enc": torch.zeros(4, 8), "W_dec": torch.zeros(8, 4)}
    torch.save(state | {"b_enc": torch.zeros(8), "b_dec": torch.zeros(4)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt: W_enc without thresholds.*cfg.json"):
        read_autoencoder(tmp_path / "x.pt")
