"""A sheet of what the generator draws: held-out references, and below each its drawing.

    python -m benchmarks.generator_sheet --out docs/images/generator.png

References are held-out drawings of men and women with a skin tone, under planted factors, taken at
random; nothing is picked by what came of it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.steering_references import people_of
from features.embedded.world import SIZE, EmbeddedPairs
from features.files import replacing
from mms_apps.steering.generator import SteeredGenerator

COLUMNS = 12
COLOURS = 256
GAP = 6
"""Pixels between a drawing and the next row's reference."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--space", default="embedded-ssl")
    parser.add_argument("--drawings", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    drawer = SteeredGenerator.load(arguments.generator, arguments.space, arguments.device)
    source = EmbeddedPairs("heldout", draw_seed=arguments.seed)
    chosen = random.Random(arguments.seed).sample(people_of(source), arguments.drawings)
    references = [source.pair(index).image for index in sorted(chosen)]
    embeddings = torch.cat([drawer.embed(image=image) for image in references])
    drawings = drawer.draw(embeddings, range(len(references)))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.out) as temporary:
        page = sheet(references, drawings).quantize(COLOURS, dither=Image.Dither.NONE)
        page.save(temporary, format="PNG", optimize=True)


def sheet(references: Sequence[Image.Image], drawings: Sequence[Image.Image]) -> Image.Image:
    """Rows of references, each with the row of their drawings below."""
    rows = -(-len(references) // COLUMNS)
    height = 2 * SIZE + GAP
    page = Image.new("RGB", (COLUMNS * SIZE, rows * height - GAP), "white")
    for place, pictures in enumerate(zip(references, drawings, strict=True)):
        row, column = divmod(place, COLUMNS)
        for below, picture in enumerate(pictures):
            page.paste(picture, (column * SIZE, row * height + below * SIZE))
    return page


if __name__ == "__main__":
    main()
