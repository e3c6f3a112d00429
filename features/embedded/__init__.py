"""The small world that ships with the package: emoji pairs, two encoders, their FeatureSpaces,
and an image generator."""

from pathlib import Path

ROOT = Path(__file__).parent
EMOJI = ROOT / "emoji.parquet"
ENCODERS = ROOT / "encoders"
SPACES = ROOT / "spaces"
GENERATOR = ROOT / "generator"
ENCODER_NAMES = ("embedded", "embedded-ssl")
