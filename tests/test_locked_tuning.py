"""Heads on two frozen towers, in miniature: towers with random weights, pairs they can learn."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from features.encoders.load import load_encoder
from features.encoders.locked_model import build_locked_model
from features.encoders.locked_tuning import (
    Heads,
    LockedTuning,
    class_mixes,
    contrastive_loss,
    correlated_heads,
    retrieval,
    train_heads,
    tune_locked_towers,
)
from features.encoders.tower_features import TowerFeatures, compute_features
from features.errors import UserError
from features.pairs.open import open_pairs
from tests.conftest import Mms

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "grey", "purple")
CPU = torch.device("cpu")
TINY = LockedTuning(dim=12, context_length=10, steps=60, dropout=0.1, held_out_share=0.25)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "square", "of", "the", "colour", *COLOURS]


def save_image_tower(folder: Path, **config: object) -> Path:
    """timm's smallest ResNet with random weights and five classes that are colours."""
    import timm
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=5)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    settings = {
        "architecture": "test_resnet",
        "num_classes": 5,
        "pretrained_cfg": dict(model.default_cfg) | {"input_size": [3, 48, 48], "num_classes": 5},
        "label_names": list(COLOURS[:5]),
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def save_text_tower(folder: Path, pad_token: str = "[PAD]") -> Path:
    """A BERT of one layer with random weights over a dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    with torch.random.fork_rng():
        torch.manual_seed(1)
        bert = BertModel(
            BertConfig(
                vocab_size=len(WORDS),
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=32,
                pad_token_id=0,
                initializer_range=0.5,
            )
        )
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token=pad_token
    ).save_pretrained(folder)
    bert.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    return str(save_image_tower(folder / "image")), str(save_text_tower(folder / "text"))


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 noisy squares of eight colours, each with two captions; and one that is no image."""
    folder = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(48):
        colour = COLOURS[index % len(COLOURS)]
        plain = np.asarray(Image.new("RGB", (56, 48), colour), float)
        noisy = (plain + rng.normal(0, 12, plain.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index}.png")
        texts = [f"a {colour} square", f"square of the colour {colour}"]
        rows.append({"file_name": f"{index}.png", "captions": texts})
    (folder / "none.png").write_bytes(b"no image")
    rows.append({"file_name": "none.png", "captions": ["a square"]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def tuned(
    towers: tuple[str, str], coloured: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "encoder"
    tune_locked_towers(open_pairs(str(coloured)), *towers, out, TINY, "cpu", progress=False)
    return out


def test_plain_open_clip_loads_the_folder_offline(
    tuned: Path, coloured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tuned}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tuned}")
    model.eval()
    encoder = load_encoder(f"local-dir:{tuned}", device="cpu")
    images = [Image.open(coloured / f"{i}.png").convert("RGB") for i in range(3)]
    texts = ["a red square", "square of the colour blue"]
    with torch.inference_mode():
        image = model.encode_image(torch.stack([transform(i) for i in images]), normalize=True)
        text = model.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(encoder.encode_images(images), image, atol=1e-4, rtol=0)
    torch.testing.assert_close(encoder.encode_texts(texts), text, atol=1e-4, rtol=0)
    assert encoder.dim == TINY.dim and encoder.shared_space


def test_a_folder_that_moved_still_loads(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / "moved")
    config = tmp_path / "moved" / "open_clip_config.json"
    record = json.loads(config.read_text())
    record["model_cfg"]["text_cfg"]["hf_model_name"] = "/nowhere"
    config.write_text(json.dumps(record))
    moved = load_encoder(f"local-dir:{tmp_path / 'moved'}", device="cpu")
    assert moved.fingerprint == load_encoder(f"local-dir:{tuned}", device="cpu").fingerprint


def test_pictures_find_their_colours_and_towers_stay(
    tuned: Path, towers: tuple[str, str], coloured: Path
) -> None:
    encoder = load_encoder(f"local-dir:{tuned}", device="cpu")
    images = encoder.encode_images([Image.open(coloured / f"{i}.png") for i in range(8)])
    texts = encoder.encode_texts([f"a {colour} square" for colour in COLOURS])
    assert ((images @ texts.T).argmax(1) == torch.arange(8)).float().mean() >= 0.75
    weights = load_file(tuned / "open_clip_model.safetensors")
    tower = load_file(Path(towers[0]) / "model.safetensors")
    torch.testing.assert_close(
        weights["visual.trunk.conv1.0.weight"].float(), tower["conv1.0.weight"], atol=1e-3, rtol=0
    )
    record = json.loads((tuned / "training.json").read_text())
    assert record["count"] == 48 and record["choice"]["n"] == 12
    assert record["image_tower"] == "image" and record["text_tower"] == "text"
    assert record["class_names"] == 5
    assert not (tuned / "tower_features").exists()


def test_a_cut_off_run_keeps_its_features(
    towers: tuple[str, str],
    tuned: Path,
    coloured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import features.encoders.locked_tuning as recipe

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out, pairs = tmp_path / "encoder", open_pairs(str(coloured))
    with monkeypatch.context() as patched:
        patched.setattr(recipe, "train_heads", die)
        with pytest.raises(KeyboardInterrupt):
            tune_locked_towers(pairs, *towers, out, TINY, "cpu", progress=False)
    other = dataclasses.replace(TINY, context_length=9)
    with pytest.raises(UserError, match="features of other towers, pairs or settings"):
        tune_locked_towers(pairs, *towers, out, other, "cpu", progress=False)
    monkeypatch.setattr("features.encoders.tower_features._write_part", die)
    tune_locked_towers(pairs, *towers, out, TINY, "cpu", progress=False)
    whole = load_file(tuned / "open_clip_model.safetensors")
    resumed = load_file(out / "open_clip_model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_features_are_those_that_open_clip_puts_under_its_heads(
    towers: tuple[str, str], coloured: Path, tmp_path: Path
) -> None:
    locked = build_locked_model(*towers, dim=4, context_length=10, device=CPU)
    features = compute_features(locked, open_pairs(str(coloured)), tmp_path, "", progress=False)
    assert len(features) == 48 and len(features.texts) == 16
    visual, text = locked.model.visual, locked.model.text
    image = Image.open(coloured / "5.png").convert("RGB")
    with torch.inference_mode():
        whole = visual(locked.preprocessing.transform(image)[None])
        embedded = text(locked.tokenizer(["a white square"]))
    torch.testing.assert_close(visual.head(features.images[5:6]), whole, atol=1e-4, rtol=1e-4)
    captions, owners = features.captions_of(torch.tensor([5, 2]))
    assert owners.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(
        text.proj(features.texts[captions[:1]]), embedded, atol=1e-4, rtol=1e-4
    )


def test_class_mixes_against_a_literal_loop(towers: tuple[str, str]) -> None:
    locked = build_locked_model(*towers, dim=4, context_length=10, device=CPU)
    width = locked.classifier.in_features
    images = 9 * torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    mixes = class_mixes(locked, images)
    vectors = locked.text_features(list(COLOURS[:5]))
    for row in range(3):
        probabilities = locked.classifier(images[row]).softmax(-1)
        expected = sum(probabilities[c] * vectors[c] for c in range(5))
        torch.testing.assert_close(mixes[row], expected)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 1000))
def test_contrastive_loss_against_a_double_loop(texts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = torch.nn.functional.normalize(torch.randn(4, 5, generator=generator), dim=-1)
    x = torch.nn.functional.normalize(torch.randn(len(texts), 5, generator=generator), dim=-1)
    y = bank[texts]
    scale = torch.tensor(7.0)
    ids = torch.tensor(texts)
    loss = contrastive_loss(x, y, scale, ids[:, None] == ids[None, :])
    total = 0.0
    for i in range(len(texts)):
        right = [j for j in range(len(texts)) if texts[j] == texts[i]]
        rows = [float(scale * x[i] @ y[j]) for j in range(len(texts))]
        columns = [float(scale * x[j] @ y[i]) for j in range(len(texts))]
        for logits in (rows, columns):
            norm = np.log(np.exp(logits).sum())
            total -= sum(logits[j] - norm for j in right) / len(right)
    assert float(loss) == pytest.approx(total / (2 * len(texts)), abs=1e-4)


def made_features(counts: list[int], seed: int = 0) -> TowerFeatures:
    """Random features; every caption of its own."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    return TowerFeatures(
        images=torch.randn(len(counts), 6, generator=generator),
        texts=torch.randn(total, 5, generator=generator),
        captions=torch.randperm(total, generator=generator),
        starts=torch.tensor([0, *np.cumsum(counts)]),
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=8), st.integers(0, 1000))
def test_retrieval_and_captions_against_literal_loops(counts: list[int], seed: int) -> None:
    features = made_features(counts, seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 6), (3,), (3, 5))
    heads = Heads(*(torch.randn(shape, generator=generator) for shape in shapes))
    pictures = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    captions_of = [
        features.captions[features.starts[p] : features.starts[p + 1]].tolist() for p in pictures
    ]
    drawn = features.draw_captions(pictures, torch.Generator().manual_seed(seed)).tolist()
    assert all(text in own for text, own in zip(drawn, captions_of, strict=True))
    with torch.no_grad():
        x = heads.embed_images(features.images[pictures])
        similarity = [
            [(heads.embed_texts(features.texts[own]) @ row).tolist() for own in captions_of]
            for row in x
        ]
    figures = retrieval(heads, features, pictures)
    hits, ranks = [], []
    for i, row in enumerate(similarity):
        others = [s for j, own in enumerate(row) if j != i for s in own]
        rank = 1 + sum(s > max(row[i]) + 1e-6 for s in others)
        hits.append(rank == 1)
        ranks.append(rank)
    for i, own in enumerate(captions_of):
        for c in range(len(own)):
            scores = [similarity[j][i][c] for j in range(len(counts))]
            ranks.append(1 + sum(s > scores[i] + 1e-6 for s in scores))
    assert figures["i2t_r1"] == pytest.approx(np.mean(hits))
    assert figures["mean_reciprocal_rank"] == pytest.approx(np.mean([1 / r for r in ranks]))


def test_correlated_heads_against_the_generalised_eigenproblem() -> None:
    """Moments by literal loops, every picture counting once; the axes by scipy."""
    from scipy.linalg import eigh

    features, shrinkage = made_features([1, 3, 2, 4] * 5), 0.3
    pictures = torch.arange(3, 20)
    mixes = torch.randn(20, 5, generator=torch.Generator().manual_seed(9))
    heads = correlated_heads(features, mixes, pictures, 4, shrinkage, CPU)
    x = features.images.double().numpy()
    mean = x[3:].mean(0)
    c_x, c_y, c_xy = np.zeros((6, 6)), np.zeros((5, 5)), np.zeros((6, 5))
    for picture in pictures.tolist():
        rows = features.captions[features.starts[picture] : features.starts[picture + 1]]
        texts = [*features.texts[rows].double().numpy(), mixes[picture].double().numpy()]
        centred = x[picture] - mean
        c_x += np.outer(centred, centred) / 17
        for text in texts:
            unit = text / np.linalg.norm(text)
            c_y += np.outer(unit, unit) / 17 / len(texts)
            c_xy += np.outer(centred, unit) / 17 / len(texts)
    c_x += shrinkage * np.diag(c_x).mean() * np.eye(6)
    c_y += shrinkage * np.diag(c_y).mean() * np.eye(5)
    squares, axes = eigh(c_xy @ np.linalg.solve(c_y, c_xy.T), c_x)
    expected = (axes[:, ::-1] * np.sqrt(squares[::-1].clip(0)))[:, :4].T  # [dim, image width]
    found = heads.image.detach().double().numpy()
    for mine, theirs in zip(found, expected, strict=True):
        assert abs(mine @ theirs) / np.linalg.norm(mine) / np.linalg.norm(theirs) > 0.999
    sizes = np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert sizes == pytest.approx(sizes[0], rel=1e-3)
    assert heads.image_bias.tolist() == pytest.approx((-found @ mean).tolist(), abs=1e-4)


def test_training_stops_where_it_no_longer_helps() -> None:
    """Texts that are noise: steps would go on fitting them for ever."""
    features = made_features([2] * 40)
    tuning = LockedTuning(
        dim=4, steps=5000, evaluate_every=5, patience=3, learning_rate=1e-3, held_out_share=0.25
    )
    _, choice = train_heads(features, None, tuning, CPU, progress=False)
    assert choice["steps"] < 4000
    assert choice["n"] == 10


def test_steps_lower_the_loss_and_are_the_same_again() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(60, 4, generator=generator)
    images = hidden @ torch.randn(4, 6, generator=generator)
    texts = hidden @ torch.randn(4, 5, generator=generator)
    rows = torch.arange(60)
    features = TowerFeatures(images, texts, rows, torch.arange(61))
    tuning = LockedTuning(dim=4, steps=100, learning_rate=1e-2, dropout=0.0)
    first, choice = train_heads(features, None, tuning, CPU, progress=False)
    again, _ = train_heads(features, None, tuning, CPU, progress=False)
    assert torch.equal(first.image, again.image)
    assert retrieval(first, features, rows)["i2t_r1"] > 0.5
    start = correlated_heads(features, None, rows, 4, choice["shrinkage"], CPU)
    same = torch.eye(60, dtype=torch.bool)

    def loss(heads: Heads) -> float:
        x, y = heads.embed_images(images), heads.embed_texts(texts)
        return contrastive_loss(x, y, heads.log_scale.exp(), same).item()

    assert choice["steps"] == 0 or loss(first) < loss(start)


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ("nowhere", None, "nowhere: no image tower; give timm:NAME"),
        ("timm:no_such_net", None, "timm:no_such_net: cannot be loaded"),
        (None, "/nowhere", "/nowhere: cannot be loaded as a transformers text model"),
    ],
)
def test_towers_that_cannot_be_loaded_are_named(
    towers: tuple[str, str], image: str | None, text: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_locked_model(image or towers[0], text or towers[1], 4, 10, CPU)


def test_towers_without_a_place_in_open_clip_are_refused(
    towers: tuple[str, str], tmp_path: Path
) -> None:
    image = save_image_tower(tmp_path / "image", model_args={"stem_type": "deep"})
    with pytest.raises(UserError, match="stem_type"):
        build_locked_model(str(image), towers[1], 4, 10, CPU)
    text = save_text_tower(tmp_path / "text", pad_token="a")
    with pytest.raises(UserError, match="fills up texts with 4"):
        build_locked_model(towers[0], str(text), 4, 10, CPU)
    config = json.loads((Path(towers[1]) / "config.json").read_text())
    shutil.copytree(towers[1], tmp_path / "gpt")
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="type gpt2"):
        build_locked_model(towers[0], str(tmp_path / "gpt"), 4, 10, CPU)
    assert config["model_type"] == "bert"
    (tmp_path / "text2" / "1_Pooling").mkdir(parents=True)
    shutil.copytree(towers[1], tmp_path / "text2", dirs_exist_ok=True)
    pooling = tmp_path / "text2" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pooling_mode_max_tokens"):
        build_locked_model(towers[0], str(tmp_path / "text2"), 4, 10, CPU)
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_x": False}))
    locked = build_locked_model(towers[0], str(tmp_path / "text2"), 4, 10, CPU)
    assert type(locked.model.text.pooler).__name__ == "ClsLastHiddenStatePooler"


def test_a_space_wider_than_a_tower_and_too_few_pairs_are_refused(
    towers: tuple[str, str], coloured: Path, tmp_path: Path
) -> None:
    pairs = open_pairs(str(coloured))
    with pytest.raises(UserError, match="--dim 25: the narrower tower has 24"):
        tune_locked_towers(
            pairs, *towers, tmp_path / "a", dataclasses.replace(TINY, dim=25), "cpu", False
        )
    few = dataclasses.replace(TINY, held_out_share=0.01)
    with pytest.raises(UserError, match="48 readable pairs, 0 of them held out"):
        tune_locked_towers(pairs, *towers, tmp_path / "b", few, "cpu", False)


def test_the_command_as_a_user_types_it(
    mms: Mms, towers: tuple[str, str], coloured: Path, tmp_path: Path
) -> None:
    image, text = "--image-tower", "--text-tower"
    out = tmp_path / "encoder"
    base = ("train-encoder", "--pairs", str(coloured), "--out", str(out))
    code, printed, _ = mms(*base, image, towers[0], text, towers[1], "--dim", "8", "--steps", "20")
    assert code == 0, printed
    assert "pictures held out to choose this by" in printed and f"local-dir:{out}" in printed
    assert load_encoder(f"local-dir:{out}", device="cpu").dim == 8
    for options, message in (
        ((image, towers[0]), "--image-tower: needs --text-tower beside it"),
        ((text, towers[1]), "--text-tower: needs --image-tower beside it"),
        ((image, towers[0], text, towers[1], "--ssl"), "--ssl: trains towers"),
        (("--no-class-names",), "--class-names: needs --image-tower"),
    ):
        code, _, errors = mms(*base, *options)
        assert code == 2 and message in errors and "Traceback" not in errors
