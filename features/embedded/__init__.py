"""The small worlds that ship with the package: emoji pairs, two encoders, their FeatureSpaces and
an image generator; and photographs, with an encoder and a FeatureSpace."""

from pathlib import Path

ROOT = Path(__file__).parent
EMOJI = ROOT / "emoji.parquet"
PHOTOS = ROOT / "photos.parquet"
ENCODERS = ROOT / "encoders"
SPACES = ROOT / "spaces"
GENERATOR = ROOT / "generator"
ENCODER_NAMES = ("embedded", "embedded-ssl")
"""Of the emoji."""
SHIPPED = (*ENCODER_NAMES, "photos")
"""Encoders, each with a FeatureSpace of the same name."""
SPACE_NAMES = (*SHIPPED, "garments")
"""FeatureSpaces; that of garments is of the encoder `photos`."""
