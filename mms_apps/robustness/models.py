"""CLIP as a classifier that can be attacked: pixels in [0, 1] in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from features.encoders.encoder import Encoder, pictures_of
from features.errors import UserError, first_line
from features.pairs.images import rgb

Progress = Callable[[float], None]
"""Called with the share that is done, in (0, 1]."""
BATCH = 128
"""Images at once: on a CPU no slower than more, and in less memory."""


class ZeroShot(nn.Module):
    """Zero-shot classification, or retrieval, where a class is all captions of an image.

    Normalisation is inside; resizing and cropping are outside (`pixels_of`). An edit of the
    embedding, of a FeatureSpace's groups say, is inside, so that attacks go through it.

    Attributes:
        vectors: of the texts, unit rows `[texts, dim]`.
        texts_of: of each class the rows of its texts, `[classes, most]` int64, the nearest of which
            counts; a class with fewer than `most` names one of them again.
    """

    vectors: Tensor
    texts_of: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        vectors: Tensor,
        edit: nn.Module | None = None,
        before: nn.Module | None = None,
        texts_of: Tensor | None = None,
    ) -> None:
        """
        Args:
            vectors: `[texts, dim]`, as `features.embedded.evaluate.class_vectors` makes them.
            edit: unit image embeddings `[n, dim]` -> embeddings `[n, dim]` of any length.
            before: pixels -> pixels, a defence at the input.
            texts_of: `[classes, most]`; None where every text is a class of its own.

        Raises:
            UserError: the encoder's transform does not end in ToTensor and Normalize.
        """
        super().__init__()
        require_pixels(encoder)
        self.encoder = encoder
        self.visual = encoder.model
        self.edit = edit
        self.before = before
        device = encoder.device
        preprocessing = encoder.preprocessing
        self.register_buffer("vectors", vectors.detach().clone().float().to(device))
        own = torch.arange(len(vectors))[:, None] if texts_of is None else texts_of
        self.register_buffer("texts_of", own.to(device))
        self.register_buffer("scale", logit_scale(encoder))
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, -1, 1, 1))
        self.eval()

    def with_defence(self, edit: nn.Module | None, before: nn.Module | None) -> ZeroShot:
        """The same classifier with other edits of the embedding and of the pixels."""
        return ZeroShot(self.encoder, self.vectors, edit, before, self.texts_of)

    def embed(self, pixels: Tensor) -> Tensor:
        """Unit embeddings `[n, dim]` of pixels `[n, 3, height, width]`, edited."""
        return self.edited(self.plain(pixels))

    def plain(self, pixels: Tensor) -> Tensor:
        """Unit embeddings `[n, dim]` of pixels `[n, 3, height, width]`, before the edit."""
        embedding = self.visual.encode_image(self.prepared(pixels))  # type: ignore[operator]
        return F.normalize(embedding.float(), dim=-1)

    def prepared(self, pixels: Tensor) -> Tensor:
        """Pixels `[n, 3, height, width]` as the encoder takes them."""
        if self.before is not None:
            pixels = self.before(pixels)
        prepared: Tensor = _ChannelsLast.apply((pixels - self.mean) / self.std)
        return prepared

    def edited(self, embedding: Tensor) -> Tensor:
        """Unit embeddings `[n, dim]`, edited."""
        return embedding if self.edit is None else F.normalize(self.edit(embedding), dim=-1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[n, classes]`."""
        return self.logits(self.embed(pixels))

    def logits(self, embedding: Tensor) -> Tensor:
        """Logits `[n, classes]` of unit embeddings `[n, dim]`."""
        by_text = self.scale * embedding @ self.vectors.T  # [n, texts]
        return by_text[:, self.texts_of].amax(2)

    def same_text(self) -> Tensor:
        """Whether two classes have a text in common: `[classes, classes]` bool."""
        has = torch.zeros(len(self.texts_of), len(self.vectors), device=self.texts_of.device)
        has.scatter_(1, self.texts_of, 1.0)
        return has @ has.T > 0


class _ChannelsLast(torch.autograd.Function):
    """Pixels in channels-last memory, in which a ResNet's convolutions are faster on a CPU;
    gradients come back in the ordinary one, which torchattacks takes for granted."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        return pixels.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


class ResizedTo(nn.Module):
    """Pixels brought to the side of another model's images; can be differentiated."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[2:] == self.size:
            return pixels
        return F.interpolate(pixels, self.size, mode="bilinear", antialias=True)


class Squeezed(nn.Module):
    """Pixels rounded to so many bits a channel, a defence at the input (feature squeezing, Xu et
    al. 2018, arXiv 1704.01155).

    The rounding has no useful gradient. `straight_through` lets gradients pass as if it did
    nothing, which an adaptive attack must do (BPDA, Athalye et al. 2018, arXiv 1802.00420).
    """

    def __init__(self, bits: int, *, straight_through: bool) -> None:
        super().__init__()
        self.levels = 2**bits - 1
        self.straight_through = straight_through

    def extra_repr(self) -> str:
        return f"levels={self.levels}, straight_through={self.straight_through}"

    def forward(self, pixels: Tensor) -> Tensor:
        rounded = (pixels * self.levels).round() / self.levels
        return pixels + (rounded - pixels).detach() if self.straight_through else rounded


def pixels_of(encoder: Encoder, images: Sequence[Image.Image]) -> Tensor:
    """The images as the encoder sees them, before normalisation: float32
    `[n, 3, height, width]` in [0, 1], on the encoder's device."""
    require_pixels(encoder)
    eight_bit = encoder.preprocessing.pixels([rgb(image) for image in pictures_of(images)])
    return (eight_bit.to(encoder.device).permute(0, 3, 1, 2).float() / 255).contiguous()


def image_size(encoder: Encoder) -> tuple[int, int]:
    """Height and width of an encoder's images."""
    height, width = encoder.preprocess(Image.new("RGB", (8, 8))).shape[-2:]
    return int(height), int(width)


def require_pixels(encoder: Encoder) -> None:
    """Raise UserError where the encoder's transform cannot be cut before the normalisation."""
    if encoder.preprocessing.crop is None:
        raise UserError(
            f"{encoder.id}: its image transform does not end in ToTensor and Normalize, so pixels "
            "cannot be attacked; use an encoder of open_clip, or one of transformers whose images "
            "all have one size"
        )


def logit_scale(encoder: Encoder) -> Tensor:
    """What the encoder multiplies cosines by: a scalar; 100 where it has none of its own."""
    own = getattr(encoder.model, "logit_scale", None)
    return torch.tensor(100.0) if own is None else own.detach().float().exp()


def require_float32(model: nn.Module, pixels: Tensor) -> None:
    """Raise UserError unless the model is a module, and the pixels and all weights are float32."""
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the model is a {type(model).__name__}; give a torch.nn.Module, pixels in [0, 1] -> "
            "logits [n, classes]"
        )
    _require_tensor(pixels, "images", "float32 [n, channels, height, width] in [0, 1]")
    tensors = {"images": pixels} | dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(
                f"{name}: {tensor.dtype}, but attacks are computed in float32 (in less, they leave "
                "their eps or give NaN); give images and model in float32"
            )


def _require_tensor(given: object, name: str, wanted: str) -> None:
    if not isinstance(given, Tensor):
        raise UserError(f"{name} are a {type(given).__name__}; give a tensor, {wanted}")


def require_labelled(model: nn.Module, pixels: Tensor, labels: Tensor) -> int:
    """Check what is attacked, within `undisturbed`.

    Returns:
        The number of the model's classes.

    Raises:
        UserError: the pixels are no `[n, channels, height, width]` in [0, 1], the model can't take
            them, or the labels are no numbers `[n]` of classes, or on another device.
    """
    _require_tensor(labels, "labels", "the number of each image's class, int64 [n]")
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise UserError(
            f"images are {pixels.dtype} {list(pixels.shape)}; give float32 "
            "[n, channels, height, width] in [0, 1]"
        )
    if len(pixels) and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(
            f"images reach from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}; give "
            "pixels in [0, 1], and let the model normalise them itself"
        )
    if labels.dtype != torch.long or labels.shape != pixels.shape[:1]:
        raise UserError(
            f"labels are {labels.dtype} {list(labels.shape)} for {len(pixels)} images; give the "
            "number of each one's class, int64 [n]"
        )
    if labels.device != pixels.device:
        raise UserError(
            f"labels are on {labels.device}, images on {pixels.device}; give both on the model's "
            "device"
        )
    try:
        with torch.no_grad():
            logits = model(pixels[:1])
    except (RuntimeError, TypeError, ValueError) as error:  # of torch and of models' own checks
        raise UserError(
            f"the model fails on images {list(pixels.shape[1:])} on {pixels.device} "
            f"({first_line(error)}); give them [n, channels, height, width] in the size that it "
            "takes, on its device"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the model gives {found}; wrap it in a module that gives logits alone, a tensor "
            "[n, classes]"
        )
    classes = logits.shape[1]
    if classes < 2:
        raise UserError(
            f"the model gives {classes} logits an image; give one for each class, of a binary "
            "model's z torch.cat([-z, z], dim=1)"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UserError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, but the model has "
            f"{classes} classes, from 0 to {classes - 1}"
        )
    return classes


def require_gradients(model: nn.Module, pixels: Tensor) -> None:
    """Check that gradients of a model's logits reach the pixels, within `undisturbed`.

    Raises:
        UserError: they do not.
    """
    why = ""
    try:
        if model(pixels[:1].detach().clone().requires_grad_()).requires_grad:
            return
    except RuntimeError as error:  # such as of numpy(), or of weights made in inference mode
        why = f" ({first_line(error)})"
    raise UserError(
        f"no gradient of the model's logits reaches its images{why}; leave out no_grad, "
        "inference_mode, detach and numpy within it, or run only noise and square"
    )


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Attack a model within this context and leave no trace.

    Within it the model is in eval mode, the weights are frozen, gradients are on, autocast is off
    and the global random state starts from the seed. Afterwards, after an exception too, the random
    state, that of every GPU too, every module's training flag and every parameter's requires_grad
    are what they were.
    """
    training = [(module, module.training) for module in model.modules()]
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        model.eval()
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        with (
            torch.random.fork_rng(gpus),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda" if gpus else "cpu", enabled=False),
        ):
            torch.manual_seed(seed)
            yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)


@torch.no_grad()
def batched(
    function: Callable[[Tensor], Tensor], pixels: Tensor, batch_size: int = BATCH
) -> Tensor:
    """A function of pixels, batch by batch, without gradients; a model in training mode keeps its
    running statistics, as all its buffers, as they are."""
    modules = function.modules() if isinstance(function, nn.Module) else ()
    buffers = [b for module in modules if module.training for b in module.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        return torch.cat([function(part) for part in pixels.split(batch_size)])
    finally:
        for buffer, kept in zip(buffers, before, strict=True):
            buffer.copy_(kept)


def correct(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is classified right: `[n]` bool.

    In retrieval a text may belong to several classes; where it is the nearest, it is right for each
    of them.
    """
    return right_class(model, batched(model, pixels), labels)


def correct_clean(
    model: nn.Module, pixels: Tensor, labels: Tensor, batch_size: int = BATCH
) -> Tensor:
    """`correct` of clean images.

    Raises:
        UserError: logits of some of them are not finite.
    """
    logits = batched(model, pixels, batch_size)
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise UserError(
            f"the model's logits are not finite for {broken} of {len(pixels)} images, so that no "
            "loss can be followed; mend them, and leave out classes by -1e4, not by -inf"
        )
    return right_class(model, logits, labels)


def right_class(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """Whether logits `[n, classes]` of a model are highest for the labels `[n]`: `[n]` bool."""
    predicted = logits.argmax(1)
    right = predicted == labels
    if not isinstance(model, ZeroShot) or right.all():
        return right
    rows = torch.arange(len(labels), device=labels.device)
    tied = logits[rows, labels] == logits[rows, predicted]
    return right | (tied & model.same_text()[labels, predicted])
