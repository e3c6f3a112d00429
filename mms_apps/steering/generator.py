"""A generator that takes edits: a Stable unCLIP pipeline, its FeatureSpace, a prior for prompts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from features.distributed import resolve_device
from features.embedded import GENERATOR
from features.errors import UserError, first_line
from features.extras import require
from features.space.space import FeatureSpace
from mms_apps.steering.adapters.base import Call
from mms_apps.steering.adapters.choose import adapter_for
from mms_apps.steering.edits import Steering
from mms_apps.steering.prior import WEIGHTS, Prior
from mms_apps.steering.values import number, plain, seed_of, whole

STEPS = 14
GUIDANCE = 2.0


@dataclass(frozen=True)
class Generated:
    """Pictures, one for each steering.

    images: RGB.
    embeddings: the raw image embeddings that conditioned them, `[n, dim]`.
    drift: degrees by which each was turned `[n]`.
    scale: what the edits were scaled by to stay within the drift that is allowed, `[n]`.
    """

    images: list[Image.Image]
    embeddings: Tensor
    drift: Tensor
    scale: Tensor


class SteeredGenerator:
    """Pictures from a prompt, a reference image or both, with edits of features.

    A prompt alone becomes an image embedding by the prior. With a reference, the embedding is the
    reference's, and the prompt conditions the denoiser beside it.

    Attributes:
        pipe: a `StableUnCLIPImg2ImgPipeline`.
        space: of the encoder that the pipeline's image embeddings come from.
        prior: None where the generator has none; it then needs a reference.
    """

    def __init__(self, pipe: Any, space: FeatureSpace, prior: Prior | None = None) -> None:
        """
        Raises:
            UserError: the space belongs to another encoder than the pipeline's.
        """
        self.pipe = pipe
        self.space = space
        self.prior = prior
        self.adapter = adapter_for(pipe, space)
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def load(
        cls,
        where: str | Path = "embedded",
        space: FeatureSpace | str | Path = "embedded-ssl",
        device: str = "auto",
    ) -> SteeredGenerator:
        """Load a generator.

        Args:
            where: `embedded`, the folder of a Stable unCLIP pipeline, or its hub id.
            space: the FeatureSpace, or where it is.
            device: a torch device; "auto" is the GPU where there is one.

        Raises:
            UserError: there is no such pipeline, or the space belongs to another encoder.
        """
        require("steering")
        from diffusers import StableUnCLIPImg2ImgPipeline

        # Diffusers finds a pipeline's own classes only in modules that are imported already.
        import mms_apps.steering.image_encoder  # noqa: F401

        target = resolve_device(device)
        if isinstance(space, str | Path):
            space = FeatureSpace.load(space, device=target)
        folder = GENERATOR if where == "embedded" else Path(where)
        name = str(folder if folder.is_dir() else where)
        dtype = torch.float16 if target.type == "cuda" else torch.float32
        try:
            with _own_encoder_expected():
                pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(name, dtype=dtype)
        except Exception as error:  # diffusers and huggingface_hub each raise their own
            raise UserError(
                f"{where}: is no Stable unCLIP pipeline ({first_line(error)}); give "
                "embedded, a folder that holds one, or a hub id"
            ) from error
        prior = Prior.load(folder) if (folder / WEIGHTS).is_file() else None
        return cls(pipe.to(target), space, prior)

    def embed(self, prompt: str = "", image: Image.Image | None = None, seed: int = 0) -> Tensor:
        """The raw image embedding `[1, dim]` of a reference, or by the prior of a prompt.

        Raises:
            UserError: neither is given, there is no prior for a prompt, or the seed is none.
        """
        seed = seed_of(seed)
        if not isinstance(prompt, str):
            raise UserError(f"prompt {prompt!r}: give one text")
        if image is not None:
            return self.adapter.embed_image(image).float()
        if not prompt.strip():
            raise UserError("nothing to draw; give a prompt, a reference image, or both")
        if self.prior is None:
            raise UserError("this generator has no prior for prompts; give a reference image")
        text = self.space.encoder.encode_texts([prompt]).clone()  # [1, text dim]
        return self.prior.sample(text, torch.Generator().manual_seed(seed))

    def generate(
        self,
        steerings: Sequence[Steering],
        *,
        prompt: str = "",
        image: Image.Image | None = None,
        embedding: Tensor | np.ndarray | None = None,
        seed: int = 0,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
    ) -> Generated:
        """One picture a steering, all from the same noise; `Steering()` changes nothing.

        Args:
            embedding: raw, `[1, dim]`, instead of a prompt's or reference's own.
            steps: of denoising.
            guidance: scale of the classifier-free guidance; 1 for none.

        Raises:
            UserError: there is nothing to draw or to draw from, an edit or the embedding does not
                fit the space, or seed, steps or guidance are no such numbers.
        """
        if isinstance(steerings, Steering) or not steerings:
            raise UserError(
                "steerings: give a list, one for each picture; Steering() edits nothing"
            )
        seed, steps, guidance = seed_of(seed), whole("steps", steps, 1), plain(guidance)
        if not (isinstance(guidance, int | float) and 0 <= guidance < math.inf):
            raise UserError(f"guidance {guidance!r}: must be a number, 0 or more")
        if embedding is None:
            embedding = self.embed(prompt, image, seed)
        embedding = self.space.embeddings_of(embedding).float()
        if len(embedding) != 1:
            raise UserError(
                f"embedding {list(embedding.shape)}: give one, [1, dim]; each steering makes a "
                "picture of it"
            )
        words = prompt if image is not None else ""
        images: dict[int, Image.Image] = {}
        steered = [s.apply(self.space, embedding, self.adapter.modality) for s in steerings]
        found = torch.cat([s.embedding for s in steered])  # [n, dim]
        for begin_and_end in dict.fromkeys(s.begin_and_end for s in steerings):
            rows = [n for n, s in enumerate(steerings) if s.begin_and_end == begin_and_end]
            unedited = embedding.expand(len(rows), -1)
            with self._schedule(found[rows], unedited, words, *begin_and_end):
                made = self.draw(
                    found[rows], [seed] * len(rows), words, steps=steps, guidance=guidance
                )
            images.update(zip(rows, made, strict=True))
        return Generated(
            [images[n] for n in range(len(steerings))],
            found,
            torch.cat([s.drift for s in steered]),
            torch.cat([s.scale for s in steered]),
        )

    def strip(self, steering: Steering, strengths: Sequence[float], **given: Any) -> Generated:
        """The same edits at several strengths: each edit's and blend's is multiplied by them.

        Args:
            given: as `generate` takes it.
        """
        return self.generate([scaled(steering, strength) for strength in strengths], **given)

    def _schedule(
        self, steered: Tensor, plain: Tensor, prompt: str, begin: float, end: float
    ) -> AbstractContextManager[None]:
        """The context in which only some steps see the edits."""
        if (begin, end) == (0.0, 1.0):
            return nullcontext()
        return self.adapter.during(steered, plain, Call(prompt), begin, end)

    def draw(
        self,
        embeddings: Tensor,
        seeds: Sequence[int],
        prompt: str = "",
        *,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
    ) -> list[Image.Image]:
        """Pictures of raw image embeddings `[n, dim]` as they are, each from its seed's noise.

        Raises:
            UserError: there is not one seed for each, or one is no seed.
        """
        if len(seeds) != len(embeddings):
            raise UserError(f"{len(seeds)} seeds for {len(embeddings)} embeddings; give one each")
        call = Call(prompt, guided=guidance > 1)
        inputs = self.adapter.inputs(embeddings, embeddings, call)
        generators = [torch.Generator().manual_seed(seed_of(seed)) for seed in seeds]
        return self.pipe(
            **inputs, num_inference_steps=steps, guidance_scale=guidance, generator=generators
        ).images


def scaled(steering: Steering, strength: float) -> Steering:
    """The same steering, gone another share of its way: strengths of add and the others' shares,
    at least 0, are multiplied; 0 changes nothing.

    Raises:
        UserError: the strength is no finite number.
    """
    strength = number("strength", strength)
    share = max(strength, 0.0)
    return replace(
        steering,
        edits=tuple(
            replace(edit, strength=edit.strength * strength)
            if edit.mode == "add"
            else replace(edit, share=edit.share * share)
            for edit in steering.edits
        ),
        blends=tuple(replace(blend, alpha=blend.alpha * strength) for blend in steering.blends),
        score_sets=tuple(replace(s, share=s.share * share) for s in steering.score_sets),
    )


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """One row of pictures of one size."""
    width, height = images[0].size
    row = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        row.paste(image, (place * width, 0))
    return row


@contextmanager
def _own_encoder_expected() -> Iterator[None]:
    """Leaves out diffusers' warning that the image encoder is of no class of its own."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Expected types for image_encoder")

    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
