"""A steering with its pictures in one file, to keep and to pass on."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from features.files import replacing
from features.space.space import FeatureSpace
from mms_apps.steering.edits import Steering
from mms_apps.steering.saved import Source, steering_record

EDITS = "edits.json"


def write_bundle(
    path: Path,
    steering: Steering,
    space: FeatureSpace,
    source: Source,
    pictures: Mapping[str, Image.Image],
) -> None:
    """Write a zip file: edits.json, which `mms steer --edits` and the demo read back, and the
    pictures as PNG.

    Args:
        pictures: by name.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(EDITS, json.dumps(steering_record(steering, space, source), indent=1))
        for name, picture in pictures.items():
            written = io.BytesIO()
            picture.save(written, "PNG")
            archive.writestr(f"{name}.png", written.getvalue())
