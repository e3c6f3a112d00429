"""The small world that ships with the package: emoji pairs, two encoders, their FeatureSpaces."""

from pathlib import Path

ROOT = Path(__file__).parent
EMOJI = ROOT / "emoji.parquet"
ENCODERS = ROOT / "encoders"
SPACES = ROOT / "spaces"
ENCODER_NAMES = ("embedded", "embedded-ssl")
