"""Models of one modality, by their ids: an image model of timm's, a text model of transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from features.errors import UserError, first_line

TIMM = "timm:"
TIMM_FOLDER = "local-dir:"


def load_image_tower(image_id: str, num_classes: int | None = None) -> nn.Module:
    """A timm model with its weights.

    Args:
        image_id: as timm takes it (a name with its tag, hf-hub:org/name, local-dir:path).
        num_classes: 0 leaves the classifier out; None keeps it as it is.

    Raises:
        UserError: it cannot be loaded.
    """
    import timm

    try:
        return timm.create_model(image_id, pretrained=True, num_classes=num_classes)
    except Exception as error:  # timm, huggingface_hub and urllib each raise their own
        raise UserError(
            f"{TIMM}{image_id}: cannot be loaded ({first_line(error)}); check the name and the "
            f"network, or give {TIMM_FOLDER}<folder of a downloaded timm model>"
        ) from error


def unloadable_text_tower(text_id: str, error: Exception) -> UserError:
    """What to raise where a text model could not be loaded; transformers, huggingface_hub and
    urllib each raise their own errors."""
    return UserError(
        f"{text_id}: cannot be loaded as a transformers text model ({first_line(error)}); "
        "check the name and the network, or give the folder of a downloaded one"
    )


def public_id(model_id: str) -> str:
    """A model's id, of an absolute path only the folder's name."""
    scheme, colon, rest = model_id.rpartition(":")
    return f"{scheme}{colon}{Path(rest).name}" if Path(rest).is_absolute() else model_id


def timm_id(tower: str) -> str:
    """What timm calls the image tower that a user named `timm:NAME` or by its folder.

    Raises:
        UserError: neither of the two.
    """
    if tower.startswith(TIMM):
        return tower.removeprefix(TIMM)
    if (Path(tower) / "config.json").is_file():
        return TIMM_FOLDER + tower
    raise UserError(
        f"{tower}: no image tower; give timm:NAME, or a folder with timm's config.json and weights"
    )


def architecture(image_id: str) -> str:
    """The name by which timm builds an image tower without its weights.

    Raises:
        UserError: a folder's config has arguments beside the name, which no open_clip folder can
            hold.
    """
    if not image_id.startswith(TIMM_FOLDER):
        return image_id.rpartition("/")[2].partition(".")[0]
    path = Path(image_id.removeprefix(TIMM_FOLDER)) / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_args"):
        raise UserError(
            f"{path}: model_args ({', '.join(config['model_args'])}) cannot be kept in an "
            "open_clip folder; take a tower that timm builds by its name alone"
        )
    return str(config["architecture"])


def class_names(image_tower: nn.Module) -> list[str]:
    """What the outputs of an image tower's classifier are called; none where that is not known.

    timm keeps them beside the weights, or knows them by their number (ImageNet's sets).
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    settings: dict[str, Any] = image_tower.pretrained_cfg  # type: ignore[assignment]
    count = getattr(image_tower, "num_classes", 0)
    names = settings.get("label_names") or []
    described = settings.get("label_descriptions") or {}
    if len(names) == count:
        return [str(described.get(name, name)) for name in names]
    subset = infer_imagenet_subset(image_tower)
    return list(ImageNetInfo(subset).label_descriptions()) if subset else []
