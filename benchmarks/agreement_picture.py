"""The method page's picture: two features that MDS cannot tell apart, and their agreement.

python -m benchmarks.agreement_picture --out docs/images/agreement.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from features.scores.agreement import AgreementStatistics
from features.scores.dominance import DominanceStatistics

PAIRS = 24
WIDTH, PANEL = 900, 190
LEFT, BAR = 24, 33
IMAGES, TEXTS, INK, GROUND = "#c2571a", "#2f6db3", "#222222", "#ffffff"
TALLEST = 56


def two_features(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Activations of images and of texts, `[PAIRS, 2]` each: the first feature's in the same pairs,
    the second's in other ones."""
    generator = torch.Generator().manual_seed(seed)
    image, text = 0.5 + 0.5 * torch.rand(2, PAIRS, 2, generator=generator)
    active = torch.arange(PAIRS) % 3 == 1
    turn = torch.arange(PAIRS) < PAIRS // 2
    image[:, 0] *= active
    text[:, 0] = image[:, 0] * (0.8 + 0.4 * torch.rand(PAIRS, generator=generator))
    image[:, 1] *= active & turn
    text[:, 1] *= active & ~turn
    return image, text


def scores(image: Tensor, text: Tensor) -> list[tuple[float, float]]:
    """MDS and agreement of each feature."""
    dominance = DominanceStatistics(image.shape[1])
    dominance.update(image, text)
    agreement = AgreementStatistics(dominance.means)
    agreement.update(image, text)
    found = zip(dominance.scores(1).mds, agreement.scores(1).agreement, strict=True)
    return [(float(mds), float(value)) for mds, value in found]


def draw(image: Tensor, text: Tensor) -> Image.Image:
    """A panel a feature, a column a pair: the image's activation upwards, the text's downwards."""
    picture = Image.new("RGB", (WIDTH, 2 * PANEL), GROUND)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(17)
    for feature, (mds, agreement) in enumerate(scores(image, text)):
        top = feature * PANEL
        name = "shared" if feature == 0 else "balanced, not shared"
        words = f"{name}: MDS {mds:.2f}, agreement {agreement:.2f}"
        pen.text((LEFT, top + 8), words, fill=INK, font=font)
        middle = top + PANEL // 2 + 14
        for pair in range(PAIRS):
            x = LEFT + pair * BAR
            up = middle - TALLEST * float(image[pair, feature])
            down = middle + TALLEST * float(text[pair, feature])
            pen.rectangle((x + 4, up, x + BAR - 5, middle), fill=IMAGES)
            pen.rectangle((x + 4, middle, x + BAR - 5, down), fill=TEXTS)
        pen.line((LEFT, middle, LEFT + PAIRS * BAR, middle), fill=INK)
        pen.text((WIDTH - 80, middle - 30), "images", fill=IMAGES, font=font)
        pen.text((WIDTH - 80, middle + 8), "texts", fill=TEXTS, font=font)
    return picture.quantize(16)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    draw(*two_features()).save(parser.parse_args().out, optimize=True)


if __name__ == "__main__":
    main()
