"""Evidence: against literal loops and finite differences, on every class of encoder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from features.encoders.context import Context
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.errors import UserError
from features.evidence.maps import InnerMap, inner_maps
from features.evidence.pictures import PictureEvidence, picture_evidence, places, seen_part
from features.evidence.windows import Windows
from features.evidence.words import WORD, word_evidence
from features.space.space import FeatureSpace
from tests.tiny_transformers import CLASSES, save_tiny

CAPTION = "a red circle of blue"


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def first_three(embedding: Tensor) -> Tensor:
    """A target: some coordinates, squared so that it is not linear."""
    return embedding[:, :3] + embedding[:, 3:6].square()


@pytest.fixture(scope="module")
def tiny(clip_folder: Path) -> Encoder:
    return load_encoder(f"local-dir:{clip_folder}", device="cpu")


@pytest.fixture(scope="module")
def space(space_folder: Path, tiny: Encoder) -> FeatureSpace:
    return FeatureSpace.load(space_folder, device="cpu", encoder=tiny)


@pytest.fixture(scope="module", params=["open_clip", *CLASSES])
def encoder(
    request: pytest.FixtureRequest, tiny: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Encoder:
    """A small random encoder of each class."""
    if request.param == "open_clip":
        return tiny
    folder = tmp_path_factory.mktemp("encoders") / request.param
    return load_encoder(f"transformers:{save_tiny(folder, request.param)}", device="cpu")


def test_covering_against_a_literal_double_loop(tiny: Encoder) -> None:
    grid, width, image = 4, 2, picture()
    [found] = picture_evidence(tiny, [image], first_three, "exact", grid=grid, window=width / grid)
    whole = tiny.preprocess(image)[None]
    before = first_three(tiny.encode_image_tensors(whole))[0]
    assert torch.allclose(found.values, before, atol=1e-5)
    for row in range(grid):
        for column in range(grid):
            covered = whole.clone()
            for y in range(32):
                for x in range(32):
                    near = (
                        abs((y + 0.5) / 32 - (row + 0.5) / grid) < width / 2 / grid
                        and abs((x + 0.5) / 32 - (column + 0.5) / grid) < width / 2 / grid
                    )
                    if near:
                        covered[0, :, y, x] = 0
            after = first_three(tiny.encode_image_tensors(covered))[0]
            assert torch.allclose(found.cells[:, row, column], before - after, atol=1e-5)


def test_words_left_out_and_alone_against_a_literal_loop(encoder: Encoder) -> None:
    [found] = word_evidence(encoder, [CAPTION], first_three, "exact")
    words = CAPTION.split()
    before, nothing = first_three(encoder.encode_texts([CAPTION, ""]))
    assert [found.word(place) for place in range(len(words))] == words
    for place in range(len(words)):
        left = " ".join(words[:place] + words[place + 1 :])
        without, alone = first_three(encoder.encode_texts([left, words[place]]))
        mean = ((before - without) + (alone - nothing)) / 2
        assert torch.allclose(found.words[:, place], mean, atol=1e-5)


def shifted(
    encoder: Encoder, module: str, change: Callable[[Tensor], Tensor], embed: Callable[[], Tensor]
) -> Tensor:
    """What `embed` gives when a module's output is changed."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        moved = change(tensor)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = encoder.model.get_submodule(module).register_forward_hook(hook)
    try:
        with torch.no_grad():
            return first_three(embed())
    finally:
        handle.remove()


def places_of_window(
    found: InnerMap, windows: Windows, row: int, column: int, shape: torch.Size, rows: int
) -> Tensor:
    """How much of each place of a module's output a window holds, broadcast against it."""
    height, width = (found.height, found.width) if found.height else (rows, rows)
    shares = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            held = 1.0
            for number, size, cell in ((y, height, row), (x, width, column)):
                low, high = windows.bounds[cell].tolist()
                held *= max(0, min(high, (number + 1) / size) - max(low, number / size)) * size
            shares[y, x] = held
    if not found.tokens:
        return shares[None, None]
    by_token = torch.zeros(shape[1], dtype=torch.float64)
    start = shape[1] - height * width if found.height else 0
    by_token[start : start + height * width] = shares.flatten()
    return by_token[None, :, None]


def test_the_gradient_against_finite_differences(encoder: Encoder) -> None:
    windows, image, step = Windows(4, 0.5), picture(), 0.02
    [found] = picture_evidence(encoder, [image], first_three, "fast", grid=4, window=0.5)
    pixels = encoder.preprocessing.normalise(encoder.preprocessing.pixels([image]))
    nothing = torch.zeros_like(pixels)
    patched = pixels.ndim == 3
    if patched:
        nothing[:, -1] = pixels[:, -1]
    maps = inner_maps(encoder, pixels)
    rows = int(pixels[0, -1, 0]) if patched else 0
    expected = torch.zeros_like(found.cells)
    for one in maps:
        kept: list[Tensor] = []
        for shown in (pixels, nothing):
            shifted(
                encoder,
                one.module,
                lambda tensor, kept=kept: (kept.append(tensor), tensor)[1],
                lambda shown=shown: encoder.embed_image_tensors(shown),
            )
        beyond = kept[0] - kept[1]
        for row in range(4):
            for column in range(4):
                share = places_of_window(one, windows, row, column, beyond.shape, rows)
                moved = share.float() * beyond
                up, down = (
                    shifted(
                        encoder,
                        one.module,
                        lambda tensor, by=by, moved=moved: tensor + by * moved,
                        lambda: encoder.embed_image_tensors(pixels),
                    )[0]
                    for by in (step, -step)
                )
                expected[:, row, column] += (up - down) / (2 * step) / len(maps)
    scale = expected.abs().max()
    assert scale > 0
    assert torch.allclose(found.cells, expected, atol=0.02 * float(scale))


def test_the_gradient_of_words_against_finite_differences(encoder: Encoder) -> None:
    step = 0.02
    [found] = word_evidence(encoder, [CAPTION], first_three, "fast")
    tokens = encoder.tokenize([CAPTION, ""])
    spans = [match.span() for match in WORD.finditer(CAPTION)]
    bounds = Context(encoder.tokenizer).token_spans(CAPTION, spans, tokens.shape[1])
    name = next(
        name
        for name, module in encoder.model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and name.rpartition(".")[2] in ("token_embedding", "word_embeddings")
    )
    for place, (low, high) in enumerate(bounds):

        def change(tensor: Tensor, by: float, low: int = low, high: int = high) -> Tensor:
            moved = tensor.clone()
            moved[0, low:high] += by * (tensor[0, low:high] - tensor[1, low:high])
            return moved

        up, down = (
            shifted(
                encoder,
                name,
                lambda tensor, by=by, change=change: change(tensor, by),
                lambda: encoder.embed_token_tensors(tokens),
            )[0]
            for by in (step, -step)
        )
        expected = (up - down) / (2 * step)
        scale = float(found.words.abs().max())
        assert torch.allclose(found.words[:, place], expected, atol=0.02 * scale + 1e-6)
    assert found.words.abs().max() > 0


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_several_targets_and_pictures_at_once_are_each_alone(encoder: Encoder, method: Any) -> None:
    images = [picture(0), picture(1, (48, 32)), picture(2, (24, 40))]
    together = picture_evidence(encoder, images, first_three, method, grid=3, window=0.3)
    for number, image in enumerate(images):
        [alone] = picture_evidence(
            encoder, [image], lambda e: first_three(e)[:, 1], method, grid=3, window=0.3
        )
        assert alone.cells.shape == (1, 3, 3)
        assert torch.allclose(alone.cells[0], together[number].cells[1], atol=1e-5)
        assert alone.seen == together[number].seen
    said = word_evidence(encoder, ["a red circle", "a line"], first_three, method)
    [alone_said] = word_evidence(encoder, ["a line"], lambda e: first_three(e)[:, 1], method)
    assert torch.allclose(alone_said.words[0], said[1].words[1], atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_features_have_the_evidence_of_their_pre_activations(
    space: FeatureSpace, method: Any
) -> None:
    [found] = picture_evidence(space, [picture()], [3, 7], method, grid=4)
    embedding = space.encoder.encode_images([picture()])
    values = space.dictionary.pre_activations(embedding, "image")[0, [3, 7]]
    assert torch.allclose(found.values, values, atol=1e-5)
    assert found.cells.abs().amax((1, 2)).min() > 0, "even where a feature is inactive"
    [said] = word_evidence(space, [CAPTION], [3, 7], method)
    texts = space.dictionary.pre_activations(space.encoder.encode_texts([CAPTION]), "text")
    assert torch.allclose(said.values, texts[0, [3, 7]], atol=1e-5)


def test_pre_activations_are_the_activations_where_a_feature_is_active(
    space: FeatureSpace,
) -> None:
    embedding = space.encoder.encode_images([picture(n) for n in range(8)])
    pre, active = (
        f(embedding, "image") for f in (space.dictionary.pre_activations, space.dictionary.encode)
    )
    assert (active != 0).any()
    assert torch.allclose(pre[active != 0], active[active != 0])


def test_evidence_is_found_in_inference_mode_too(clip_folder: Path) -> None:
    with torch.inference_mode():
        encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
        inside = picture_evidence(encoder, [picture()], first_three, "fast", grid=4)
        said = word_evidence(encoder, [CAPTION], first_three, "fast")
    [outside] = picture_evidence(encoder, [picture()], first_three, "fast", grid=4)
    assert torch.equal(inside[0].cells, outside.cells)
    assert torch.equal(
        said[0].words, word_evidence(encoder, [CAPTION], first_three, "fast")[0].words
    )


def test_an_encoder_in_half_precision_keeps_it(clip_folder: Path) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    encoder.model.bfloat16()
    assert encoder.dtype == torch.bfloat16
    for method in ("exact", "fast"):
        [found] = picture_evidence(encoder, [picture()], first_three, method, grid=4)
        [said] = word_evidence(encoder, [CAPTION], first_three, method)
        for values in (found.cells, said.words):
            assert values.dtype == torch.float32 and values.isfinite().all()
            assert not values.requires_grad


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.floats(0.05, 1), st.integers(1, 9), st.integers(1, 9))
def test_windows_against_literal_loops(grid: int, side: float, height: int, wide: int) -> None:
    windows = Windows(grid, side)
    half = max(side, 1 / grid) / 2
    values = torch.rand(height, wide, dtype=torch.float64)
    sums = windows.sums(values)
    rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (height, wide))
    covered = windows.covered(rows[:, None], columns[None]).view(grid, grid, height, wide)
    for r in range(grid):
        for c in range(grid):
            total = 0.0
            for y in range(height):
                for x in range(wide):
                    ends = [
                        (max(0, (cell + 0.5) / grid - half), min(1, (cell + 0.5) / grid + half))
                        for cell in (r, c)
                    ]
                    own = ((y / height, (y + 1) / height), (x / wide, (x + 1) / wide))
                    held = [
                        max(0.0, min(h, b) - max(low, a))
                        for (low, h), (a, b) in zip(ends, own, strict=True)
                    ]
                    total += float(values[y, x]) * held[0] * held[1] * height * wide
                    inside = all(
                        low <= middle < high
                        for (low, high), middle in zip(
                            ends, ((y + 0.5) / height, (x + 0.5) / wide), strict=True
                        )
                    )
                    assert bool(covered[r, c, y, x]) == inside
            assert float(sums[r, c]) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((32, 32), (0, 0, 1, 1)),
        ((400, 400), (0, 0, 1, 1)),
        ((64, 32), (0.25, 0, 0.75, 1)),
        ((40, 100), (0, 0.3, 1, 0.7)),
        ((1200, 300), (0.375, 0, 0.625, 1)),
    ],
)
def test_what_a_centre_crop_keeps(
    tiny: Encoder, size: tuple[int, int], seen: tuple[float, ...]
) -> None:
    assert seen_part(tiny, size) == pytest.approx(seen, abs=0.02)


def test_cells_are_drawn_over_what_is_seen_and_nowhere_else() -> None:
    cells = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    drawn = PictureEvidence(cells, torch.zeros(1), (0.25, 0.0, 0.75, 1.0)).upsampled((80, 40))
    assert drawn.shape == (1, 40, 80)
    assert (drawn[0, :, :20] == 0).all() and (drawn[0, :, 60:] == 0).all()
    corners = [drawn[0, y, x].item() for y in (0, 39) for x in (20, 59)]
    assert corners == [1.0, 2.0, 3.0, 4.0]
    assert drawn[0, :, 20:60].mean() == pytest.approx(2.5)


def test_tokens_of_words_are_their_own(encoder: Encoder) -> None:
    words = CAPTION.split()
    row = encoder.tokenize([CAPTION])[0]
    spans = [match.span() for match in WORD.finditer(CAPTION)]
    bounds = Context(encoder.tokenizer).token_spans(CAPTION, spans, len(row))
    assert all(first[1] == second[0] for first, second in pairwise(bounds))
    for word, (low, high) in zip(words, bounds, strict=True):
        alone = encoder.tokenize([word])[0].tolist()
        assert all(token in alone for token in row[low:high].tolist()), word
    assert sum(high - low for low, high in bounds) >= 2


def test_words_of_scripts_without_spaces_are_their_characters() -> None:
    found = [match.group() for match in WORD.finditer("Ein Bild: 猫と犬, don't!")]
    assert found == ["Ein", "Bild:", "猫", "と", "犬", ",", "don't!"]


def test_words_that_the_context_cuts_off_have_no_evidence(tiny: Encoder) -> None:
    caption = " ".join(["red", "circle", "of", "a", "blue", "line", "green", "square", "yellow"])
    for method in ("exact", "fast"):
        [found] = word_evidence(tiny, [caption], first_three, method)
        assert found.words.shape[1] == 9
        assert (found.words[:, 6:] == 0).all()
        assert (found.words[:, :6] != 0).any(0).all()


@pytest.mark.parametrize("find", [picture_evidence, word_evidence])
def test_mistakes_are_said_in_words(space: FeatureSpace, find: Any) -> None:
    samples = [picture()] if find is picture_evidence else [CAPTION]
    for number in (len(space), -1, 10**9):
        with pytest.raises(UserError, match=f"feature {number}: there is none; the last one is 23"):
            find(space, samples, [0, number])
    with pytest.raises(UserError, match="no feature"):
        find(space, samples, [])
    with pytest.raises(UserError, match="need a FeatureSpace"):
        find(space.encoder, samples, [0])
    with pytest.raises(ValueError, match="unknown method"):
        find(space, samples, [0], "quick")
    with pytest.raises(ValueError, match="must give"):
        find(space, samples, lambda embedding: embedding.sum())
    with pytest.raises(ValueError, match="batch_size"):
        find(space, samples, [0], batch_size=0)
    for wrong in ({"grid": 0}, {"window": 0.0}, {"window": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            picture_evidence(space, [picture()], [0], **wrong)
    assert find(space, [], [0]) == []


@pytest.mark.parametrize("caption", ["", "  ", "\n\t"])
def test_a_caption_without_words_is_refused(space: FeatureSpace, caption: str) -> None:
    with pytest.raises(UserError, match=r"caption 2 .*holds no word"):
        word_evidence(space, ["a red circle", caption], [0])


def test_another_encoder_than_the_spaces_is_refused(space_folder: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "clip")
    wrong = FeatureSpace.load(space_folder, device="cpu", encoder=f"transformers:{other}")
    with pytest.raises(UserError, match="not those of"):
        picture_evidence(wrong, [picture()], [0])
    with pytest.raises(UserError, match="not those of"):
        word_evidence(wrong, ["a red circle"], [0])


def test_where_pixels_and_patches_lie() -> None:
    rows, columns = places(torch.zeros(3, 4, 2))
    assert rows.flatten().tolist() == [0.125, 0.375, 0.625, 0.875]
    assert columns.flatten().tolist() == [0.25, 0.75]
    patches = torch.zeros(7, 12)
    patches[-1, :2] = torch.tensor([2.0, 2.0])  # two rows of two, and two that fill up
    rows, columns = (found.flatten() for found in places(patches))
    assert rows[:4].tolist() == [0.25, 0.25, 0.75, 0.75]
    assert columns[:4].tolist() == [0.25, 0.75, 0.25, 0.75]
    assert rows[4:].isnan().all() and columns[4:].isnan().all()
