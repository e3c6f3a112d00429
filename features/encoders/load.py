"""Loading an encoder by its id."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from features.embedded import ENCODERS, SHIPPED
from features.encoders.encoder import Encoder
from features.encoders.locked_model import TEXT_CONFIG
from features.encoders.towers import TIMM
from features.encoders.transformers import ADVICE, TRANSFORMERS, UNFIT, load_transformers
from features.encoders.two_models import load_two_models
from features.encoders.vocabulary import require_words
from features.errors import UserError, first_line

LOCAL_DIR = "local-dir:"
HF_HUB = "hf-hub:"
MODEL_FILES = {LOCAL_DIR: "open_clip_config.json", TRANSFORMERS: "config.json"}
"""What the folder of a model has, by what ids of such folders begin with."""
CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
TOGETHER = "check that its config, weights and tokenizer files belong together"
TRIED_SHAPES = ((64, 64), (96, 48))
"""Of the pictures that a model is tried on: its transform must make one shape of all."""
TRIED_TEXTS = ("a", "a longer text")
HUB_FILES = ["*.json", "*.txt", "*.model", "open_clip_*"]


@torch.inference_mode(mode=False)  # else its weights never take part in a gradient
def load_encoder(encoder_id: str | Path, device: str | torch.device = "auto") -> Encoder:
    """Load an encoder.

    Args:
        encoder_id: `arch/tag` as open_clip names them (ViT-B-32/laion2b_s34b_b79k), `arch/path` of
            a checkpoint (ViT-B-32//runs/epoch_1.pt, the path being /runs/epoch_1.pt),
            `hf-hub:org/name`, `local-dir:path` (a folder with open_clip_config.json, weights and
            tokenizer files), `transformers:ID` (a folder or a hub id of a transformers model),
            `embedded`, `embedded-ssl`, `photos`, or as a judge two models that share no space,
            `timm:NAME+text:ID` (`features.encoders.two_models`). Hub ids may end in `@REVISION`. A
            Path is a `local-dir`.
        device: a torch device; "auto" is this process's GPU where there is one.

    Raises:
        UserError: no such encoder, or its files cannot be read or downloaded.
    """
    if isinstance(encoder_id, Path):
        encoder_id = f"{LOCAL_DIR}{encoder_id}"
    if encoder_id in SHIPPED:
        return _load_folder(ENCODERS / encoder_id, encoder_id, device)
    encoder_id = _of_existing_folder(encoder_id)
    if encoder_id.startswith(LOCAL_DIR):
        folder = Path(encoder_id.removeprefix(LOCAL_DIR))
        name = folder.name if folder.is_absolute() else folder.as_posix()
        return _load_folder(folder, LOCAL_DIR + name, device)
    if encoder_id.startswith(TIMM):
        parts = load_two_models(encoder_id)
        return Encoder(*parts, device, shared_space=False)
    if encoder_id.startswith(TRANSFORMERS):
        encoder = Encoder(*load_transformers(encoder_id), device)
        return _tried(encoder, encoder_id, UNFIT, ADVICE)
    if encoder_id.startswith(HF_HUB):
        if "@" in encoder_id:
            return _load_folder(_at_revision(encoder_id), encoder_id, device)
        return _load(encoder_id, encoder_id, None, device)
    if encoder_id.endswith(CHECKPOINTS):
        return _load_checkpoint(encoder_id, device)
    architecture, tag = _known(encoder_id)
    return _load(encoder_id, architecture, tag, device)


def _of_existing_folder(encoder_id: str) -> str:
    """The id with a folder's `~` written out.

    Raises:
        UserError: the folder holds a model of another library than the id says.
    """
    prefix = next((known for known in MODEL_FILES if encoder_id.startswith(known)), "")
    place = os.path.expanduser(encoder_id.removeprefix(prefix))
    folder = Path(place)
    fitting = [known for known, file in MODEL_FILES.items() if (folder / file).is_file()]
    if fitting and prefix not in fitting:
        raise UserError(f"{encoder_id}: a folder of another kind; give {fitting[0]}{place}")
    return prefix + place


def _load_folder(folder: Path, encoder_id: str, device: str | torch.device) -> Encoder:
    """Load an open_clip folder.

    Raises:
        UserError: it lacks its config or weights.
    """
    config = folder / "open_clip_config.json"
    if not config.is_file():
        raise UserError(
            f"{encoder_id}: no open_clip_config.json in {folder}; give local-dir: a folder that "
            "holds an open_clip model"
        )
    try:
        described = json.loads(config.read_text())
    except ValueError as error:
        raise UserError(f"{config}: not JSON ({error}); save the model again") from None
    model = described.get("model_cfg") if isinstance(described, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("text_cfg"), dict):
        raise UserError(
            f"{config}: no model_cfg with a text_cfg; save the model in open_clip's hub format"
        )
    if not any(file for end in ("safetensors", "bin", "pth") for file in folder.glob(f"*.{end}")):
        raise UserError(
            f"{encoder_id}: no weights in {folder}; put open_clip_model.safetensors there"
        )
    return _load(encoder_id, LOCAL_DIR + str(folder), None, device, _text_tower_at(folder))


def _text_tower_at(folder: Path) -> dict[str, Any]:
    """open_clip's arguments for a transformers text tower whose config lies in the folder itself;
    open_clip looks for it where the folder lay when it was written."""
    text: dict[str, Any] = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"][
        "text_cfg"
    ]
    if "hf_model_name" not in text or not (folder / TEXT_CONFIG).is_file():
        return {}
    return {"text_cfg": text | {"hf_model_name": str(folder), "hf_model_pretrained": False}}


def _at_revision(encoder_id: str) -> Path:
    """The folder to which an open_clip model of the hub was downloaded in one revision.

    Args:
        encoder_id: `hf-hub:org/name@REVISION`.

    Raises:
        UserError: it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = encoder_id.removeprefix(HF_HUB).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:  # huggingface_hub and its http library each raise their own
        raise UserError(
            f"{encoder_id}: cannot be downloaded ({first_line(error)}); check the name, the "
            "revision and the network"
        ) from error


def _load_checkpoint(encoder_id: str, device: str | torch.device) -> Encoder:
    """Load an architecture that open_clip knows with the weights of a file, as its trainer writes
    them. Nothing but weights is read from it.

    Raises:
        UserError: no such architecture or file, or they don't belong together.
    """
    import open_clip

    known = open_clip.list_models()
    for place, letter in enumerate(encoder_id):
        architecture = encoder_id[:place].replace("/", "-")
        if letter == "/" and architecture in known:
            break
    else:
        near = difflib.get_close_matches(encoder_id.partition("/")[0], known, n=3, cutoff=0.4)
        raise UserError(
            f"{encoder_id}: begins with no architecture that open_clip knows; give "
            f"ARCHITECTURE/FILE; nearest names: {', '.join(near) or ', '.join(known[:3])}"
        )
    file = Path(encoder_id[place + 1 :])
    name = file.name if file.is_absolute() else file.as_posix()
    if not file.is_file():
        raise UserError(f"{encoder_id}: no file {file}; name the checkpoint after {architecture}/")
    return _load(f"{architecture}/{name}", architecture, str(file), device)


def _known(encoder_id: str) -> tuple[str, str]:
    """The architecture and the tag of an encoder that open_clip lists.

    Raises:
        UserError: it lists none of this name; the message has the nearest ones.
    """
    import open_clip

    architecture, _, tag = encoder_id.rpartition("/")
    names = {f"{a}/{t}": (a, t) for a, t in open_clip.list_pretrained()}
    found = names.get(f"{architecture.replace('/', '-')}/{tag}")
    if found is not None:
        return found
    lowered = {name.lower(): name for name in [*SHIPPED, *names]}
    query = encoder_id.lower()
    near = [name for name in lowered if name.startswith(query + "/")][:3]
    near += difflib.get_close_matches(query, lowered, n=3, cutoff=0.4)
    nearest = ", ".join(dict.fromkeys(lowered[name] for name in near[:3])) or "embedded"
    raise UserError(
        f"{encoder_id}: unknown encoder; nearest names: {nearest} "
        "(or hf-hub:org/name, local-dir:path, transformers:ID, embedded, photos)"
    )


def _load(
    encoder_id: str,
    model_name: str,
    tag: str | None,
    device: str | torch.device,
    overrides: dict[str, Any] | None = None,
) -> Encoder:
    """Load through open_clip; `tag` may be a file, `encoder_id` is what the encoder is called
    afterwards, `overrides` takes the place of parts of the model's config.

    Raises:
        UserError: open_clip cannot, most often because nothing can be downloaded.
    """
    import open_clip

    # open_clip only warns where a tag's weights were trained with another activation.
    settings: dict[str, Any] = open_clip.get_pretrained_cfg(model_name, tag) or {} if tag else {}
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            model_name,
            tag,
            force_quick_gelu=bool(settings.get("quick_gelu")),
            require_pretrained=True,
            **(overrides or {}),
        )
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # open_clip, huggingface_hub and urllib each raise their own
        if model_name.startswith(LOCAL_DIR):
            advice = TOGETHER
        elif encoder_id.endswith(CHECKPOINTS):
            advice = f"check that the file holds the weights of a {model_name}, and no more"
        else:
            advice = (
                "check the name and the network, or use what needs none: embedded, photos or "
                "local-dir:<folder of a downloaded model>"
            )
        raise UserError(
            f"{encoder_id}: cannot be loaded ({first_line(error)}); {advice}"
        ) from error
    try:
        encoder = Encoder(encoder_id, model, transform, tokenizer, device)
    except ValueError as error:
        raise UserError(
            f"{encoder_id}: its transform cannot be used ({first_line(error)}); mend the "
            "preprocess_cfg of its config"
        ) from error
    if encoder_id in SHIPPED:
        return encoder
    unfit = "the model cannot embed what its transform and tokenizer make"
    return _tried(encoder, encoder_id, unfit, TOGETHER)


def _tried(encoder: Encoder, encoder_id: str, unfit: str, advice: str) -> Encoder:
    """The encoder, after it embedded two pictures and two texts.

    Args:
        unfit: what to say where it cannot.
        advice: what to do then.

    Raises:
        UserError: it cannot, its tokenizer has no words, it embeds them in different spaces, or
            gives NaN or infinity.
    """
    try:
        require_words(encoder.tokenize, encoder_id)
        image = encoder.encode_images([Image.new("RGB", shape) for shape in TRIED_SHAPES])
        text = encoder.encode_texts(TRIED_TEXTS)
    except UserError:
        raise
    except Exception as error:  # whatever the model's code raises
        raise UserError(f"{encoder_id}: {unfit} ({first_line(error)}); {advice}") from error
    if image.ndim != 2 or image.shape != text.shape:
        shapes = f"images {list(image.shape[1:])}, texts {list(text.shape[1:])}"
        raise UserError(
            f"{encoder_id}: no space that images and texts share ({shapes}); give a model "
            "trained with a contrastive loss"
        )
    for kind, embeddings in (("images", image), ("texts", text)):
        if not embeddings.isfinite().all():
            raise UserError(
                f"{encoder_id}: its embeddings of {kind} are not finite; save its weights again, "
                "from a training that did not diverge"
            )
    return encoder
