"""Encoders of images and texts: every model that open_clip can load, behind one small class."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from features.embedded import ENCODER_NAMES, ENCODERS
from features.errors import UserError, first_line
from features.judge import TIMM, load_two_models
from features.processes import wants_cpu

LOCAL_DIR = "local-dir:"
HF_HUB = "hf-hub:"


@dataclass(frozen=True)
class Preprocessing:
    """A model's image transform, cut in two where it can be.

    open_clip's transforms end in ToTensor and Normalize. What comes before gives 8-bit crops,
    which are small to hand from process to process; the end is applied to a whole batch at once.
    """

    transform: Callable[[Image.Image], Tensor]
    """The whole transform: RGB image -> `[3, height, width]`."""
    crop: Callable[[Image.Image], Image.Image] | None
    """The transform without its end; None where it does not end so."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    untouched: tuple[int, int] | None = None
    """(width, height) of images that `crop` returns as they are."""

    @classmethod
    def of(cls, transform: Callable[[Image.Image], Tensor]) -> Preprocessing:
        from torchvision.transforms import Compose, Normalize, ToTensor

        steps = list(transform.transforms) if isinstance(transform, Compose) else []
        if len(steps) < 2 or not isinstance(steps[-2], ToTensor):
            return cls(transform, None)
        if not isinstance(steps[-1], Normalize):
            return cls(transform, None)
        crop, end = Compose(steps[:-2]), steps[-1]
        size = crop(Image.new("RGB", (512, 512))).size
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        same = np.array_equal(np.asarray(crop(Image.fromarray(noise))), noise)
        return cls(transform, crop, tuple(end.mean), tuple(end.std), size if same else None)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """What `normalise` takes: uint8 `[n, height, width, 3]`, or the finished float32
        `[n, 3, height, width]` where the transform cannot be cut."""
        if self.crop is None:
            return torch.stack([self.transform(image) for image in images])
        crops = [i if i.size == self.untouched else self.crop(i) for i in images]
        return torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))

    def normalise(self, pixels: Tensor) -> Tensor:
        """The output of `pixels`, on any device, as float32 `[n, 3, height, width]`.

        Cut transforms give channels-last memory, in which convolutions are faster (a small ResNet
        on a CPU: 1.5 times) and the whole batch is one multiplication and one addition.
        """
        if self.crop is None:
            return pixels
        n, height, width, channels = pixels.shape
        mean = torch.tensor(self.mean, device=pixels.device)
        std = torch.tensor(self.std, device=pixels.device)
        scale = (1 / (255 * std)).repeat(width)  # [width * 3]
        shift = (mean / std).repeat(width)  # [width * 3]
        rows = pixels.view(n, height, width * channels).float().mul_(scale).sub_(shift)
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


class Encoder:
    """A model with its transform and tokenizer; embeddings come out with unit length.

    The model is in eval mode, and nothing is tracked for gradients.

    Attributes:
        id: as `load_encoder` takes it; of an absolute local-dir only the folder's name.
        model: the open_clip model.
        shared_space: whether images and texts are embedded in one space, as CLIP does.
    """

    def __init__(
        self,
        encoder_id: str,
        model: nn.Module,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        device: torch.device | str = "cpu",
        *,
        shared_space: bool = True,
    ) -> None:
        self.id = encoder_id
        self.shared_space = shared_space
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.preprocessing = Preprocessing.of(transform)
        self.tokenizer = tokenizer

    @cached_property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.encode_texts(["a"]).shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names, types, shapes and values of the model's state."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def preprocess(self, image: Image.Image) -> Tensor:
        """The model's own transform: RGB image -> float32 `[3, height, width]`."""
        return self.preprocessing.transform(image)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids `[n, context]`; texts that are too long are cut."""
        return self.tokenizer(list(texts))

    @torch.inference_mode()
    def encode_image_tensors(self, pixels: Tensor) -> Tensor:
        """Preprocessed images `[n, 3, height, width]` -> unit embeddings `[n, dim]` float32."""
        embedding = self.model.encode_image(pixels.to(self.device))  # type: ignore[operator]
        return F.normalize(embedding.float(), dim=-1)

    @torch.inference_mode()
    def encode_token_tensors(self, tokens: Tensor) -> Tensor:
        """Token ids `[n, context]` -> unit embeddings `[n, dim]` float32."""
        embedding = self.model.encode_text(tokens.to(self.device))  # type: ignore[operator]
        return F.normalize(embedding.float(), dim=-1)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Images -> unit embeddings `[n, dim]` float32."""
        pixels = self.preprocessing.pixels([image.convert("RGB") for image in images])
        return self.encode_image_tensors(self.preprocessing.normalise(pixels.to(self.device)))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit embeddings `[n, dim]` float32."""
        return self.encode_token_tensors(self.tokenize(texts))


def load_encoder(encoder_id: str, device: str | torch.device = "auto") -> Encoder:
    """Load an encoder.

    Args:
        encoder_id: `arch/tag` as open_clip names them (ViT-B-32/laion2b_s34b_b79k),
            `hf-hub:org/name`, `local-dir:path` (a folder with open_clip_config.json, weights and
            tokenizer files), `embedded`, `embedded-ssl`, or as a judge two models that share no
            space, `timm:NAME+text:ID` (`features.judge`).
        device: a torch device; "auto" is this process's GPU where there is one.

    Raises:
        UserError: no such encoder, or its files cannot be read or downloaded.
    """
    if encoder_id in ENCODER_NAMES:
        return _load_folder(ENCODERS / encoder_id, encoder_id, device)
    if encoder_id.startswith(LOCAL_DIR):
        folder = Path(encoder_id.removeprefix(LOCAL_DIR))
        name = folder.name if folder.is_absolute() else folder.as_posix()
        return _load_folder(folder, LOCAL_DIR + name, device)
    if encoder_id.startswith(TIMM):
        name, model, transform, tokenizer = load_two_models(encoder_id)
        return Encoder(
            name, model, transform, tokenizer, resolve_device(device), shared_space=False
        )
    if encoder_id.startswith(HF_HUB):
        return _load(encoder_id, encoder_id, None, device)
    architecture, tag = _known(encoder_id)
    return _load(encoder_id, architecture, tag, device)


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
        complete = "model_cfg" in json.loads(config.read_text())
    except ValueError as error:
        raise UserError(f"{config}: not JSON ({error}); save the model again") from None
    if not complete:
        raise UserError(f"{config}: no model_cfg; save the model in open_clip's hub format")
    if not any(file for end in ("safetensors", "bin", "pth") for file in folder.glob(f"*.{end}")):
        raise UserError(
            f"{encoder_id}: no weights in {folder}; put open_clip_model.safetensors there"
        )
    return _load(encoder_id, LOCAL_DIR + str(folder), None, device)


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
    lowered = {name.lower(): name for name in [*ENCODER_NAMES, *names]}
    query = encoder_id.lower()
    near = [name for name in lowered if name.startswith(query + "/")][:3]
    near += difflib.get_close_matches(query, lowered, n=3, cutoff=0.4)
    nearest = ", ".join(dict.fromkeys(lowered[name] for name in near[:3])) or "embedded"
    raise UserError(
        f"{encoder_id}: unknown encoder; nearest names: {nearest} "
        "(or hf-hub:org/name, local-dir:path, embedded)"
    )


def _load(encoder_id: str, model_name: str, tag: str | None, device: str | torch.device) -> Encoder:
    """Load through open_clip; `encoder_id` is what the encoder is called afterwards.

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
        )
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # open_clip, huggingface_hub and urllib each raise their own
        if model_name.startswith(LOCAL_DIR):
            advice = "check that its config, weights and tokenizer files belong together"
        else:
            advice = (
                "check the name and the network, or use what needs none: embedded or "
                "local-dir:<folder of a downloaded model>"
            )
        raise UserError(
            f"{encoder_id}: cannot be loaded ({first_line(error)}); {advice}"
        ) from error
    return Encoder(encoder_id, model, transform, tokenizer, resolve_device(device))


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto`: the GPU of this process's local rank, or the CPU."""
    if device != "auto":
        return torch.device(device)
    if wants_cpu():
        return torch.device("cpu")
    if torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")
