"""The embedded world: emoji pairs with planted factors of known modality.

Every image gets a background (colour, pattern), a scale and a position that no caption mentions:
vision-only factors. Every caption gets a register and one of its three wordings, which no image
shows: text-only factors. Gender, skin tone, role and kind stand in both.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from features.embedded import EMOJI
from features.errors import UserError
from features.pairs.base import Described, Found, Pair, PairSource, Part, Skipped, spans
from features.pairs.images import rgb

SIZE = 64

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "grey": (128, 130, 135),
    "red": (205, 60, 60),
    "green": (70, 160, 80),
    "blue": (60, 100, 200),
    "yellow": (235, 205, 80),
    "purple": (140, 80, 170),
    "cyan": (90, 195, 205),
}
PATTERNS = ("plain", "stripes", "dots", "checks")
SCALES = {"small": (0.55, 0.7), "medium": (0.7, 0.85), "large": (0.85, 1.0)}
REGISTERS: dict[str, tuple[str, ...]] = {
    "plain": ("a picture of {}", "an image of {}", "this shows {}"),
    "terse": ("{}", "{} .", "- {}"),
    "polite": ("please see {} , thank you", "kindly note {} here", "may i present {} , please"),
    "excited": ("wow ! {} !", "look , {} ! amazing !", "yay ! so happy to see {} !"),
    "formal": ("figure depicting {}", "the following illustration represents {}", "exhibit : {}"),
    "casual": ("lol just {}", "haha it's {} again", "yeah so {} i guess"),
}
PLANTED_IMAGE = ("background", "pattern", "scale")
PLANTED_TEXT = ("register", "wording")


@dataclass(frozen=True)
class PlantedFactors:
    """One draw of the planted factors.

    `scale` is the drawing's side over the image's, in [0.55, 1]; `left` and `top` are the
    drawing's position over the free space, in [0, 1]; `tint` shifts the background's colour by
    at most 12 of 255 a channel; `wording` picks among the register's templates.
    """

    background: str
    pattern: str
    scale_name: str
    scale: float
    left: float
    top: float
    tint: tuple[int, int, int]
    register: str
    wording: int

    @classmethod
    def draw(cls, rng: random.Random) -> PlantedFactors:
        """Draw each factor independently and uniformly."""
        scale_name = rng.choice(list(SCALES))
        return cls(
            background=rng.choice(list(BACKGROUNDS)),
            pattern=rng.choice(PATTERNS),
            scale_name=scale_name,
            scale=rng.uniform(*SCALES[scale_name]),
            left=rng.random(),
            top=rng.random(),
            tint=(rng.randint(-12, 12), rng.randint(-12, 12), rng.randint(-12, 12)),
            register=rng.choice(list(REGISTERS)),
            wording=rng.randrange(3),
        )


def _pattern_mask(pattern: str) -> np.ndarray:
    """Where the pattern is darker: bool [SIZE, SIZE]."""
    y, x = np.mgrid[:SIZE, :SIZE]
    masks = {
        "plain": np.zeros((SIZE, SIZE), bool),
        "stripes": (x + y) // 6 % 2 == 0,
        "dots": ((x % 12 - 6) ** 2 + (y % 12 - 6) ** 2) <= 10,
        "checks": (x // 10 + y // 10) % 2 == 0,
    }
    return masks[pattern]


_SHADES = {name: 1.0 - 0.25 * _pattern_mask(name)[..., None] for name in PATTERNS}  # [64, 64, 1]


def render(drawing: Image.Image, factors: PlantedFactors) -> Image.Image:
    """Lay an RGBA drawing on the planted background: RGB, SIZE x SIZE."""
    colour = np.add(BACKGROUNDS[factors.background], factors.tint).clip(0, 255)
    canvas = Image.fromarray((_SHADES[factors.pattern] * colour).astype(np.uint8))
    scaled, corner = _placed(drawing, factors)
    canvas.paste(scaled, corner, scaled)
    return canvas


def drawn_mask(drawing: Image.Image, factors: PlantedFactors) -> np.ndarray:
    """Where `render` shows the drawing rather than the background: bool `[SIZE, SIZE]`."""
    canvas = Image.new("L", (SIZE, SIZE))
    scaled, corner = _placed(drawing, factors)
    canvas.paste(scaled.getchannel("A"), corner)
    return np.asarray(canvas) >= 128


def _placed(drawing: Image.Image, factors: PlantedFactors) -> tuple[Image.Image, tuple[int, int]]:
    """The drawing in its planted size, and its upper left corner."""
    side = round(SIZE * factors.scale)
    scaled = drawing.resize((side, side), Image.Resampling.BILINEAR)
    return scaled, (round((SIZE - side) * factors.left), round((SIZE - side) * factors.top))


def caption(name: str, factors: PlantedFactors) -> str:
    """The name in the planted register."""
    return REGISTERS[factors.register][factors.wording].format(name)


def split_named(spec: str) -> str | None:
    """The split that `embedded`, `embedded:train` or `embedded:heldout` names; None is both.

    Raises:
        UserError: there is no such split.
    """
    split = spec.partition(":")[2] or None
    if split not in (None, "train", "heldout"):
        raise UserError(f"{spec}: no such split; use embedded, embedded:train or embedded:heldout")
    return split


class EmbeddedPairs(PairSource):
    """The 3,786 emoji pairs, each under one fixed draw of the planted factors.

    Args:
        split: "train", "heldout", or None for both.
        draw_seed: another seed gives another draw of every pair's planted factors.
        planted: without planted factors, drawings stand on white, captions are the bare names.
    """

    def __init__(
        self, split: str | None = None, draw_seed: int = 0, *, planted: bool = True
    ) -> None:
        self.split = split
        self.draw_seed = draw_seed
        self.planted = planted
        self.name = "embedded" if split is None else f"embedded:{split}"

    @cached_property
    def rows(self) -> list[dict]:
        """The emoji's rows: id, image (WebP bytes), text, tags, attributes, role, split."""
        filters = None if self.split is None else [("split", "=", self.split)]
        return pq.read_table(EMOJI, filters=filters).to_pylist()

    def drawing(self, index: int) -> Image.Image:
        """The RGBA drawing of one row, SIZE x SIZE."""
        with Image.open(io.BytesIO(self.rows[index]["image"])) as image:
            return image.convert("RGBA")

    def factors(self, index: int) -> PlantedFactors:
        """The planted factors of one row, fixed by its id and the draw's seed."""
        return PlantedFactors.draw(random.Random(f"{self.draw_seed}/{self.rows[index]['id']}"))

    def described(self, index: int) -> Described:
        """What is known of one pair without its image."""
        row = self.rows[index]
        attributes = {
            key: row[key] for key in ("group", "subgroup", "gender", "skin_tone", "role", "split")
        }
        attributes["tags"] = "|".join(row["tags"])
        text = row["text"]
        if self.planted:
            factors = self.factors(index)
            text = caption(text, factors)
            attributes |= {
                "background": factors.background,
                "pattern": factors.pattern,
                "scale": factors.scale_name,
                "register": factors.register,
                "wording": f"{factors.register} {factors.wording + 1}",
            }
        return Described(row["id"], (text,), attributes, row["id"])

    def image(self, index: int) -> Image.Image:
        """The image of one pair, rendered."""
        drawing = self.drawing(index)
        return render(drawing, self.factors(index)) if self.planted else rgb(drawing)

    def pair(self, index: int) -> Pair:
        """One pair, rendered."""
        return Pair(**vars(self.described(index)), image=self.image(index))

    def total(self) -> int:
        return len(self.rows)

    def parts(self) -> list[Part]:
        return spans(EMOJI.name, len(self.rows))

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        for index in range(part.start, part.stop):
            yield Found(self.described(index), partial(self.image, index))

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        index_of = {row["id"]: index for index, row in enumerate(self.rows)}
        for location in locations:
            if location in index_of:
                yield location, self.image(index_of[location])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(EMOJI.read_bytes())
        digest.update(f"{self.split}/{self.draw_seed}/{self.planted}".encode())
        return digest.hexdigest()
