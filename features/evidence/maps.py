"""The inner maps of an image tower on which the fast method looks: where a picture still is one and
little is left to compute.

Towers are not asked how they are built. What every module gives on one picture tells maps `[n,
channels, height, width]` from tokens `[n, tokens, width]`; a module will do if all that the
embedding takes from the pixels goes through what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from features.encoders.encoder import Encoder
from features.errors import UserError

SIDES = (8, 4)
"""Of a convolutional tower's maps: the last one of at least 8 places a side, which says where, and
the last one of at least 4, which says what; chosen on training pairs of the emoji, as their mean
is."""
MOST_PREFIX = 8
"""Tokens that may stand before those of the patches (class, registers)."""


@dataclass(frozen=True)
class InnerMap:
    """A module whose output is a picture's map.

    module: its name within the model.
    tokens: whether it gives patch tokens `[n, prefix + patches, width]` (a transformer), else a map
        `[n, channels, height, width]`.
    height, width: of the map in places; both 0 where they differ by picture.
    """

    module: str
    tokens: bool
    height: int
    width: int

    def places(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """Values `[n, ...]` of the module's output, summed over its channels, by place: `[n,
        height, width]`.

        Args:
            shape: rows and columns of patches, where they differ by picture.
        """
        height, width = (self.height, self.width) if self.height else shape
        if not self.tokens:
            return values.sum(1)
        summed = values.sum(2)  # [n, prefix + patches]
        if self.height:
            return summed[:, -height * width :].unflatten(1, (height, width))
        return summed[:, : height * width].unflatten(1, (height, width))


@contextmanager
def watched(encoder: Encoder, maps: Sequence[InnerMap]) -> Iterator[list[Tensor]]:
    """What the modules of maps give while the context lasts, in the order in which they run;
    gradients begin at the first."""
    seen: list[Tensor] = []
    thread = get_ident()

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if get_ident() != thread:  # another one that uses the model meanwhile
            return None
        tensor = _tensor(output)
        seen.append(tensor if tensor.requires_grad else tensor.detach().requires_grad_())
        return _with_tensor(output, seen[-1].clone())  # what follows may change it in place

    handles = [
        encoder.model.get_submodule(found.module).register_forward_hook(hook) for found in maps
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


_KNOWN: WeakKeyDictionary[nn.Module, tuple[InnerMap, ...]] = WeakKeyDictionary()


def inner_maps(encoder: Encoder, pixels: Tensor) -> tuple[InnerMap, ...]:
    """The maps of an encoder's image tower, in the order in which they run; found once a model.

    Of a transformer one, the tokens in the middle of its depth: they still stand where their
    patches do, and what the class token gathers is gathered after them. Of a convolutional tower
    those that SIDES names, or its widest.

    Args:
        pixels: of one picture, `[1, ...]` as the encoder takes them.

    Raises:
        UserError: the tower has no such module.
    """
    if encoder.model not in _KNOWN:
        _KNOWN[encoder.model] = _find(encoder, pixels)
    return _KNOWN[encoder.model]


def _find(encoder: Encoder, pixels: Tensor) -> tuple[InnerMap, ...]:
    shapes = _shapes(encoder, pixels)
    maps = {n: s for n, s in shapes.items() if len(s) == 4 and min(s[2:]) > 1}
    if pixels.ndim == 3:  # patches and a row with their number, as PatchTransform makes them
        height, width, patches = 0, 0, pixels.shape[1] - 1
    elif maps:
        height, width = list(maps.values())[-1][2:]
        patches = height * width
    else:
        lengths = [shape[1] for shape in shapes.values() if len(shape) == 3]
        height = width = math.isqrt(max(lengths, default=1))
        patches = height * width
    tokens = [
        name
        for name, shape in shapes.items()
        if len(shape) == 3 and 0 <= shape[1] - patches <= MOST_PREFIX
    ]
    if len(tokens) > len(maps):
        middle = len(tokens) / 2
        for place in sorted(range(len(tokens)), key=lambda place: abs(place - middle)):
            found = InnerMap(tokens[place], True, height, width)
            if _carries_all(encoder, pixels, found, patches):
                return (found,)
    last: dict[str, InnerMap] = {}
    for side in SIDES:
        wide = [name for name, shape in maps.items() if min(shape[2:]) >= side]
        for name in reversed(wide):
            found = InnerMap(name, False, *maps[name][2:])
            if name in last or _carries_all(encoder, pixels, found, 0):
                last[name] = found
                break
    if last:
        return tuple(last.values())
    for name in sorted(maps, key=lambda name: -min(maps[name][2:])):
        found = InnerMap(name, False, *maps[name][2:])
        if _carries_all(encoder, pixels, found, 0):
            return (found,)
    raise UserError(
        f"{encoder.id}: no map or patch tokens are found within its image tower, on which the fast "
        'method looks; use method "exact"'
    )


@torch.no_grad()
def _shapes(encoder: Encoder, pixels: Tensor) -> dict[str, tuple[int, ...]]:
    """By name the shape of what each module of the image tower gives, in the order in which they
    run."""
    shapes: dict[str, tuple[int, ...]] = {}
    thread = get_ident()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = _tensor(output)
            if get_ident() == thread and tensor is not None and len(tensor) == len(pixels):
                shapes.pop(name, None)
                shapes[name] = tuple(tensor.shape)

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in encoder.model.named_modules()
        if name
    ]
    try:
        encoder.embed_image_tensors(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _carries_all(encoder: Encoder, pixels: Tensor, found: InnerMap, patches: int) -> bool:
    """Whether the embedding takes all that it has of the pixels from a module's output, and takes
    something from the places of patches."""
    seen: list[Tensor] = []
    thread = get_ident()

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if get_ident() != thread:
            return None
        seen.append(_tensor(output).detach().requires_grad_())
        return _with_tensor(output, seen[-1].clone())

    handle = encoder.model.get_submodule(found.module).register_forward_hook(hook)
    try:
        with torch.enable_grad():
            start = pixels.to(encoder.device, encoder.dtype).clone().requires_grad_()
            embedding = encoder.embed_image_tensors(start)
    finally:
        handle.remove()
    if len(seen) != 1:
        return False
    along = torch.linspace(-1, 2, embedding.shape[1], device=embedding.device)
    around, through = torch.autograd.grad(
        (embedding * along).sum(), [start, seen[0]], allow_unused=True
    )
    if around is not None or through is None:
        return False
    return bool(through[:, -patches:].abs().sum() > 0)


def _tensor(output: Any) -> Any:
    """A module's first output, where it is a tensor of numbers."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def _with_tensor(output: Any, tensor: Tensor) -> Any:
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor
