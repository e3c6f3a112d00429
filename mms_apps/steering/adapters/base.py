"""One way into a pipeline."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from features.dictionary import Modality
from features.errors import UserError
from features.pairs.images import rgb
from features.space.space import FeatureSpace

SAME = 0.05
"""A row is an embedding where it is no further from it than this share of its length: compute
dtypes round."""


@dataclass(frozen=True)
class Call:
    """What a call of the pipeline is given beside the embeddings.

    prompt: one for all embeddings, or one for each.
    negative_prompt: likewise; None leaves the pipeline's own.
    negative: raw embedding `[1, dim]` or `[n, dim]` to be guided away from; None takes what the
        pipeline takes where nobody gives one.
    guided: whether the call uses classifier-free guidance. An IP-Adapter's embeddings then come
        behind the negative ones, as diffusers has it; they fit calls of the other kind as well.
    """

    prompt: str | list[str] = ""
    negative_prompt: str | list[str] | None = None
    negative: Tensor | None = None
    guided: bool = True

    def words(self, count: int) -> dict[str, Any]:
        """The prompts as arguments, one an embedding.

        Raises:
            UserError: several prompts, but not one for each, or something else than texts.
        """
        given: dict[str, Any] = {"prompt": _one_each(self.prompt, count, "prompts")}
        if self.negative_prompt is not None:
            given["negative_prompt"] = _one_each(self.negative_prompt, count, "negative prompts")
        return given


class Adapter(ABC):
    """One way in, for one pipeline."""

    modality: ClassVar[Modality] = "image"
    paths: ClassVar[tuple[tuple[str, ...], ...]]
    """Where the denoiser's keyword arguments hold what stands for embeddings: names, or names of
    dicts and those within them."""

    def __init__(self, pipe: Any, space: FeatureSpace) -> None:
        self.pipe = pipe
        self.space = space

    @classmethod
    @abstractmethod
    def fits(cls, pipe: Any) -> bool:
        """Whether the pipeline takes embeddings this way, by what its class and parts take."""

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer."""
        return denoiser_of(self.pipe)

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimensions of the embeddings that the pipeline takes."""

    @property
    def encoder(self) -> nn.Module | None:
        """The pipeline's own encoder of what is edited."""
        return getattr(self.pipe, "image_encoder", None)

    def ready(self, embedding: Tensor) -> Tensor:
        """Embeddings where, and in the numbers in which, the pipeline computes."""
        return embedding.to(compute_device(self.denoiser), compute_dtype(self.denoiser))

    def embed_image(self, image: Image.Image) -> Tensor:
        """The raw embedding `[1, dim]` of an image by the pipeline's own encoder.

        Raises:
            UserError: the pipeline has none.
        """
        extractor = getattr(self.pipe, "feature_extractor", None)
        if self.encoder is None or extractor is None:
            raise UserError(
                f"{type(self.pipe).__name__} has no image encoder of its own; give the embedding"
            )
        pixels = extractor(images=rgb(image), return_tensors="pt").pixel_values
        with torch.no_grad():
            given = pixels.to(compute_device(self.encoder), compute_dtype(self.encoder))
            return self.encoder(given).image_embeds

    def embed_prompt(self, prompt: str | list[str]) -> Tensor:
        """The raw embeddings `[n, dim]` of prompts, for pipelines that take those.

        Raises:
            UserError: the pipeline takes embeddings of images.
        """
        raise UserError(f"{type(self.pipe).__name__} takes images; give an image or an embedding")

    def inputs(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        """The call arguments that stand for steered embeddings, the prompts among them.

        Args:
            steered: `[n, dim]`.
            plain: what they were before, `[n, dim]`.

        Raises:
            UserError: there are none, they are of another size, or the pipeline takes no such call.
        """
        if call.negative is not None:
            negative = self._some(call.negative)
            if len(negative) not in (1, len(steered)):
                raise UserError(
                    f"{len(negative)} negative embeddings for {len(steered)} embeddings; give one, "
                    "or one for each"
                )
            call = replace(call, negative=negative)
        return self.arguments(self._some(steered), self._some(plain), call)

    @abstractmethod
    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        """What `inputs` gives, for embeddings that are there."""

    def _some(self, embeddings: Tensor) -> Tensor:
        found = self.space.embeddings_of(embeddings)
        if not len(found):
            raise UserError("no embedding to edit; give at least one")
        return found

    def conditions(self, steered: Tensor, plain: Tensor, call: Call) -> list[Tensor]:
        """What of the denoiser's arguments stands for embeddings: `[n, width]` of each.

        Args:
            steered, plain, call: as `inputs` takes them.
        """
        return [self.ready(steered)]

    def replaced(
        self, inputs: dict[str, Any], replace: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """The denoiser's keyword arguments, those that stand for embeddings put through a function
        `[rows, ...]` -> `[rows, ...]`.

        Args:
            inputs: the keyword arguments of one call.
        """
        for *outer, name in self.paths:
            holder = (inputs.get(outer[0]) or {}) if outer else inputs
            found = holder.get(name)
            if found is None:
                continue
            moved = [replace(rows) for rows in found] if isinstance(found, list) else replace(found)
            inputs = inputs | ({outer[0]: holder | {name: moved}} if outer else {name: moved})
        return inputs

    def distances(self, rows: Tensor, given: Tensor, other: Tensor) -> Tensor:
        """How far rows `[rows, width]` are from given conditions `[n, width]`: `[rows, n]`,
        infinite where a row does not hold one.

        By what is in it and not by its place: guidance of whichever kind adds rows before, behind
        and between, or calls the denoiser once more. A row that is no nearer to the given condition
        than half way to the other `[n, width]` holds neither: states of different prompts have much
        in common.
        """
        distance = torch.cdist(
            rows.float(), given.to(rows.device).float(), compute_mode=EXACT
        )  # [rows, n]
        return distance.masked_fill(distance > near(given, other).to(distance), torch.inf)

    def rows(self, rows: Tensor, distance: Tensor, given: Tensor, other: Tensor) -> Tensor:
        """Rows `[rows, width]` in which each that holds a given condition `[n, width]` holds the
        other `[n, width]` instead.

        Args:
            distance: of `distances`.
        """
        nearest, which = distance.min(1)
        return torch.where(nearest.isfinite()[:, None], other.to(rows)[which], rows)

    @contextmanager
    def during(
        self, steered: Tensor, plain: Tensor, call: Call, begin: float, end: float
    ) -> Iterator[None]:
        """Undo the edits in all denoising steps but those between two shares of them.

        Afterwards the pipeline is as it was.

        Args:
            steered, plain, call: as `inputs` takes them.
            begin, end: in [0, 1], shares of the steps that run.

        Raises:
            UserError: at the end, where the pipeline was not called with each of the embeddings.
        """
        steered, plain = self._some(steered), self._some(plain)
        given = self.conditions(steered, plain, call)
        other = self.conditions(plain, plain, call)
        if begin <= 0 and end >= 1:  # none is undone
            yield
            return
        pairs = list(zip(given, other, strict=True))
        missing = torch.stack([(new != old).any(1) for new, old in pairs]).any(0)  # [n]
        outside = torch.zeros((), dtype=torch.bool, device=missing.device)
        counter = StepCounter(self.pipe)
        called = over = False

        # Which steps are edited is decided where the pipeline computes: reading it here would make
        # each step wait for the GPU.
        def replace(rows: Tensor, undone: Tensor) -> Tensor:
            nonlocal missing
            flat, undone = rows.flatten(1), undone.to(rows.device)
            fitting = [pair for pair in pairs if pair[0].shape[1] == flat.shape[1]]
            new, old = (fitting or pairs)[0]
            distance = self.distances(flat, new, old)
            held = distance.isfinite().any(0) & undone  # [n]
            missing = missing & ~held.to(missing.device)
            return torch.where(undone, self.rows(flat, distance, new, old), flat).view_as(rows)

        def hook(module: nn.Module, positional: tuple, named: dict[str, Any]) -> Any:
            nonlocal called, outside
            if over:  # in a copy of the denoiser that was made meanwhile
                return None
            called = True
            names = names_of(module, positional)
            inputs = dict(zip(names, positional, strict=False)) | named
            now = inputs["timestep"] if "timestep" in inputs else positional[1]
            share = counter.share(self.timestep(now))
            undone = (share < begin) | (share >= end)
            outside = outside | undone.to(outside.device)
            inputs = self.replaced(inputs, lambda rows: replace(rows, undone))
            first = tuple(inputs.pop(name) for name in names)
            return first + positional[len(names) :], inputs

        try:
            with ExitStack() as hooked:
                for module in (self.denoiser, *controlnets(self.pipe)):
                    hooked.enter_context(before_calls(module, hook))
                yield
        finally:
            over = True
        if not missing.any():
            return
        if not called:
            raise UserError(
                "the pipeline was not called within its schedule; call the very one that the "
                "schedule was made for, with the denoiser that it had, and no copy of it"
            )
        if outside:
            raise UserError(
                "the pipeline was called with other embeddings than the schedule was made for; "
                "give both the same image, embedding and prompt"
            )

    def timestep(self, given: Any) -> Any:
        """The scheduler's timestep, from what the denoiser is given."""
        return given


class TextAdapter(Adapter):
    """A way in for what is known of a prompt."""

    modality = "text"
    encoders: ClassVar[tuple[str, ...]]
    """The names of the text encoders that it needs."""

    @classmethod
    @abstractmethod
    def takes_prompts(cls, pipe: Any) -> bool:
        """Whether the pipeline takes prompts this way, if it has text encoders at all."""

    @classmethod
    @abstractmethod
    def reads(cls, encoder: Any) -> bool:
        """Whether a text encoder is one that this way goes through."""

    @classmethod
    def fits(cls, pipe: Any) -> bool:
        encoders = [getattr(pipe, name, None) for name in cls.encoders]
        return cls.takes_prompts(pipe) and all(map(cls.reads, encoders))

    def embed_image(self, image: Image.Image) -> Tensor:
        raise UserError(
            f"{type(self.pipe).__name__} without an IP-Adapter takes texts, not images; give a "
            "prompt, or load an IP-Adapter"
        )


def some_prompts(prompt: str | list[str] | None) -> list[str]:
    """Prompts as a list.

    Raises:
        UserError: there are none, or they are no texts.
    """
    prompts = _texts(prompt)
    if not prompts:
        raise UserError(f"prompt {prompt!r}: give the text to edit, or a list of texts")
    return prompts


def _texts(given: Any) -> list[str] | None:
    """One text or several as a list; None where they are no texts."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        return None
    texts = list(given)
    return texts if all(isinstance(one, str) for one in texts) else None


def no_words(pipe: Any) -> dict[str, Any]:
    """What calls are given beside embeddings of a prompt: None for the prompt, where they ask for
    it."""
    return {"prompt": None} if default(pipe, "prompt") is inspect.Parameter.empty else {}


def token_ids(pipe: Any, tokenizer: Any, prompts: list[str], length: int) -> Tensor:
    """Tokens `[n, length]` of prompts as the pipeline reads them: those of textual inversions that
    are several vectors stand for each of these."""
    spelled_out = getattr(pipe, "maybe_convert_prompt", lambda given, tokenizer: given)
    ids: Tensor = tokenizer(
        spelled_out(prompts, tokenizer),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids


def refuse_negative(adapter: Adapter, call: Call) -> None:
    """Raise a UserError where a call gives a negative embedding to a pipeline that takes none."""
    if call.negative is not None:
        raise UserError(
            f"{type(adapter.pipe).__name__} takes no negative embedding; give a negative prompt"
        )


class StepCounter:
    """Where a call of a pipeline stands, by the denoiser's timesteps.

    Pipelines that start from a picture run the last of the scheduler's steps alone, and some stop
    before the last. Each call of a pipeline sets the scheduler's timesteps anew; those that are
    being counted are marked, as some pipelines go on with copies of them.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.mark = f"_counted_by_{id(self)}"
        self.first: Tensor | None = None
        pipe._num_timesteps = None  # an earlier call's says nothing of a loop of one's own

    def share(self, timestep: Any) -> Tensor:
        """The share of the steps that run which lies before a timestep, in [0, 1): `[]`, where the
        scheduler's timesteps are. Nothing is read from there."""
        timesteps = self.pipe.scheduler.timesteps
        if not hasattr(timesteps, self.mark):
            steps = torch.tensor(steps_of(self.pipe.scheduler), device=timesteps.device)
            setattr(timesteps, self.mark, steps)
            self.first = None
        steps = getattr(timesteps, self.mark)
        place = self._place(timestep)
        self.first = place if self.first is None else torch.minimum(self.first, place)
        told = getattr(self.pipe, "_num_timesteps", None) or len(steps)
        last = (self.first + told).clamp(max=len(steps)) - 1
        before, begun, ended = (steps.take(one) for one in (place, self.first, last))
        return (before - begun) / (ended - begun + 1)

    def _place(self, timestep: Any) -> Tensor:
        """The number of a timestep among the scheduler's, of which some are there twice: `[]`."""
        scheduler = self.pipe.scheduler
        timesteps = scheduler.timesteps
        now = timestep.flatten()[0].to(timesteps) if isinstance(timestep, Tensor) else timestep
        away = (timesteps - now).abs()
        alike = away == away.min()
        places = torch.arange(len(timesteps), device=timesteps.device)
        known = getattr(scheduler, "step_index", None)
        if known is None:
            known = getattr(scheduler, "begin_index", None)
        if known is None and hasattr(scheduler, "counter"):
            known = scheduler.counter + (0 if self.first is None else self.first)
        if known is None:
            return torch.where(alike, places, -1).max()
        away = torch.where(alike, (places - known).abs(), torch.iinfo(places.dtype).max)
        return away.argmin()


def steps_of(scheduler: Any) -> list[int]:
    """Of each of a scheduler's timesteps, at which the denoiser is called once, the number of its
    step."""
    count = len(scheduler.timesteps)
    if not hasattr(scheduler, "prk_timesteps"):
        return [place // scheduler.order for place in range(count)]
    first = len(scheduler.prk_timesteps)  # of PNDM, by Runge-Kutta, in steps of four calls
    if not first:
        return [max(place - 1, 0) for place in range(count)]  # the first step is of two calls
    return [*(place // 4 for place in range(first)), *range(first // 4, first // 4 + count - first)]


def near(given: Tensor, other: Tensor) -> Tensor:
    """How near a row is at most to a given condition `[n, width]` that it holds: `[n]`."""
    half = (given.float() - other.float()).norm(dim=1) / 2
    return torch.minimum(SAME * given.float().norm(dim=1), half)


EXACT = "donot_use_mm_for_euclid_dist"


def names_of(module: nn.Module, positional: tuple) -> list[str]:
    """The names of arguments that a module is given by their places, as far as it names them."""
    from diffusers.utils.torch_utils import unwrap_module

    parameters = inspect.signature(unwrap_module(module).forward).parameters.values()
    names = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    return names[: len(positional)]


@contextmanager
def before_calls(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Let a forward pre-hook with keyword arguments go before each call of a module.

    One that `module.compile()` has compiled keeps the hooks that it had then, whatever comes later:
    there the hook goes before what was compiled.
    """
    compiled = module._compiled_call_impl
    if compiled is None:
        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        return

    def called(*positional: Any, **named: Any) -> Any:
        changed = hook(module, positional, named)
        positional, named = (positional, named) if changed is None else changed
        return compiled(*positional, **named)

    module._compiled_call_impl = called
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


def denoiser_of(pipe: Any) -> Any:
    """The UNet or transformer of a pipeline."""
    unet = getattr(pipe, "unet", None)
    return unet if unet is not None else pipe.transformer


def controlnets(pipe: Any) -> list[nn.Module]:
    """The networks of a pipeline that are called like its denoiser."""
    found = getattr(pipe, "controlnet", None)
    return [] if found is None else [found]


def compute_device(module: nn.Module) -> torch.device:
    """Where a module computes, which need not be where its weights wait."""
    from diffusers.utils.torch_utils import get_module_execution_device

    return get_module_execution_device(module)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The numbers in which a module computes, which need not be those that it is stored in."""
    from diffusers.models.modeling_utils import get_parameter_dtype

    return get_parameter_dtype(module)


def project_exactly(projection: nn.Module) -> None:
    """Let a projection of embeddings that is stored in fewer bits than it computes in take them
    whole: diffusers rounds what it is given to how it is stored, and then fails."""
    linear: Any = projection.image_embeds
    known = projection._forward_pre_hooks.values()
    if linear.weight.dtype != compute_dtype(linear) and as_computed not in known:
        projection.register_forward_pre_hook(as_computed)


def as_computed(projection: nn.Module, positional: tuple) -> None:
    """Bring the weights of a projection of embeddings into the numbers in which it computes; what
    stores, casts and moves them stays with them."""
    linear: Any = projection.image_embeds
    linear.to(compute_dtype(linear))


def pseudo_inverse(projection: Tensor) -> Tensor:
    """Of a projection `[width, dim]`, float32 on the CPU: `[dim, width]`; computed once for equal
    numbers."""
    numbers = projection.detach().float().cpu().contiguous().numpy()
    return _pseudo_inverse(numbers.tobytes(), numbers.shape)


@lru_cache(maxsize=4)
def _pseudo_inverse(numbers: bytes, shape: tuple[int, ...]) -> Tensor:
    return torch.linalg.pinv(torch.frombuffer(bytearray(numbers), dtype=torch.float32).view(shape))


def takes(pipe: Any, *names: str) -> bool:
    """Whether calls of a pipeline, or of a class that it comes from, take arguments."""
    return _parameters(pipe).keys() >= set(names)


def default(pipe: Any, name: str) -> Any:
    """What a pipeline's calls take for an argument that is left out; None where they don't know
    it."""
    known = _parameters(pipe)
    return known[name].default if name in known else None


def _parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    """What calls of a pipeline and of the classes that it comes from take, its own first."""
    found: dict[str, inspect.Parameter] = {}
    for cls in reversed(type(pipe).__mro__):
        if "__call__" in vars(cls):
            found |= inspect.signature(vars(cls)["__call__"]).parameters
    return found


def _one_each(given: Any, count: int, what: str) -> list[str]:
    prompts = [] if given is None else _texts(given)
    if prompts is None:
        raise UserError(f"{what} {given!r}: give a text, or a list of texts")
    if isinstance(given, str) or not prompts:
        return (prompts or [""]) * count
    if len(prompts) != count:
        raise UserError(f"{len(prompts)} {what} for {count} embeddings; give one, or one for each")
    return prompts
