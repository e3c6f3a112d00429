"""What holds of steering in every family of pipelines, however it is called and placed."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering import Edit, Steering
from mms_apps.steering.adapters.base import StepCounter, before_calls, names_of
from mms_apps.steering.adapters.choose import adapter_for
from mms_apps.steering.adapters.one_a_picture import OneAPicture
from tests.steering import pipelines

EDITS = (Edit(2, 3.0), Edit(5, -2.0))
FAMILIES = ("unclip", "kandinsky", "sd-ip", "sdxl-ip", "flux-ip", "sdxl-pooled", "sd3-pooled")
OF_IMAGES = FAMILIES[:5]
OF_WORDS = ("unclip", "sd-ip", "sdxl-ip", "flux-ip", "sdxl-pooled", "sd3-pooled")
TWO = torch.randn(2, pipelines.DIM, generator=torch.Generator().manual_seed(3))
PROMPTS = ["a cat", "two dogs"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
STEPS = 10


def source(name: str, rows: slice = slice(None)) -> dict[str, Any]:
    """What is edited: two embeddings or prompts, or some of them."""
    prompts = PROMPTS[rows]
    return {"prompt": prompts} if "pooled" in name else {"embedding": TWO[rows], "prompt": prompts}


def call(
    pipe: Any, name: str, inputs: dict[str, Any], pictures: int, steps: int = 2, **more: Any
) -> np.ndarray:
    side = 32 if name.startswith("kandinsky") else 16
    settings: dict[str, Any] = {"height": side, "width": side}
    if "flux" in name or "sd3" in name:
        settings["max_sequence_length"] = 16
    return pipe(
        **inputs,
        **settings | more,
        num_inference_steps=steps,
        output_type="np",
        generator=[torch.Generator().manual_seed(0) for _ in range(pictures)],
    ).images


@contextmanager
def seen(pipe: Any, space: FeatureSpace) -> Iterator[list[list[Tensor]]]:
    """What conditions each call of the denoiser, with all edits of a schedule done."""
    adapter = adapter_for(pipe, space)
    calls: list[list[Tensor]] = []

    def record(module: Any, positional: tuple, named: dict[str, Any]) -> None:
        found: list[Tensor] = []

        def keep(rows: Tensor) -> Tensor:
            found.append(rows.flatten(1).clone())
            return rows

        adapter.replaced(named, keep)
        calls.append(found)

    handle = adapter.denoiser.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def edited(calls: list[list[Tensor]], inputs: dict[str, Any], width: int) -> list[bool]:
    """Of each call of the denoiser, whether a steered embedding conditions it."""
    (given,) = (
        found[0] if isinstance(found, list) else found
        for key, found in inputs.items()
        if key in ("image_embeds", "ip_adapter_image_embeds", "pooled_prompt_embeds")
    )
    steered = given.flatten(1)[-1]
    return [
        any(
            torch.allclose(row[:width], steered[:width], atol=0.05) for rows in call for row in rows
        )
        for call in calls
    ]


def without_noise(pipe: Any, patch: pytest.MonkeyPatch) -> None:
    """Let Stable unCLIP add no noise to embeddings: its generators go by embeddings, not pictures,
    so that pictures of one embedding are drawn from other noise than alone."""
    noised = pipe.noise_image_embeddings

    def plain(image_embeds: Tensor, noise_level: int, **_: Any) -> Tensor:
        return noised(image_embeds, noise_level, noise=torch.zeros_like(image_embeds))

    patch.setattr(pipe, "noise_image_embeddings", plain)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("begin", [0.0, 0.5])
def test_a_batch_is_the_pictures_drawn_alone(
    name: str,
    times: int,
    begin: float,
    pipes: dict[str, Any],
    space: FeatureSpace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = pipes[name]
    if name == "unclip":
        without_noise(pipe, monkeypatch)
    steering = Steering(EDITS, begin=begin)

    def drawn(rows: slice, pictures: int, **more: Any) -> np.ndarray:
        given = source(name, rows)
        inputs = steering.inputs(space, pipe, **given)
        with steering.scheduled(space, pipe, **given):
            return call(pipe, name, inputs, pictures, **more)

    batch = drawn(slice(None), 2 * times, num_images_per_prompt=times)
    for row in range(2):
        picture = drawn(slice(row, row + 1), 1)[0]
        for place in range(times):
            np.testing.assert_allclose(batch[row * times + place], picture, atol=2e-3)
    assert np.abs(batch[0] - batch[-1]).max() > 1e-2


GUIDANCE = [(guided, scale) for guided in (True, False) for scale in (0.0, 1.0, 7.5)]


@pytest.mark.parametrize(("guided", "scale"), GUIDANCE)
@pytest.mark.parametrize("name", ["sd-ip", "sdxl-ip"])
def test_a_call_is_guided_or_not_whatever_inputs_was_told(
    name: str, guided: bool, scale: float, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    if name == "sd-ip" and scale == 0:
        scale = 0.5
    own = {"prompt": "a cat", "ip_adapter_image": PICTURE}
    ours = Steering().inputs(space, pipe, image=PICTURE, prompt="a cat", guided=guided)
    wanted, found = (call(pipe, name, given, 1, guidance_scale=scale) for given in (own, ours))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    both = Steering(EDITS).inputs(space, pipe, **source(name), guided=guided)
    pictures = call(pipe, name, both, 2, guidance_scale=scale)
    for row in range(2):
        one = Steering(EDITS).inputs(space, pipe, **source(name, slice(row, row + 1)))
        alone = call(pipe, name, one, 1, guidance_scale=scale)[0]
        np.testing.assert_allclose(pictures[row], alone, atol=2e-3)


@pytest.mark.parametrize("guided", [True, False])
def test_a_pipeline_that_never_guides_mixes_nothing_in(
    guided: bool, pipes: dict[str, Any], space: FeatureSpace, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = pipelines.unet(time_cond_proj_dim=8)
        pipelines.save_unet_ip_adapter(unet, tmp_path / "ip.safetensors")
    parts = pipes["sd-ip"].components | {"unet": unet, "scheduler": diffusers.LCMScheduler()}
    pipe = diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(
        tmp_path, subfolder="", weight_name="ip.safetensors", image_encoder_folder=None
    )
    ours = Steering().inputs(space, pipe, image=PICTURE, prompt="a cat", guided=guided)
    own = {"prompt": "a cat", "ip_adapter_image": PICTURE}
    wanted, found = (call(pipe, "sd-ip", given, 1) for given in (own, ours))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


COPIES: dict[str, Callable[[Any], Any]] = {
    "from_pipe": lambda pipe: type(pipe).from_pipe(pipe),
    "deepcopy": copy.deepcopy,
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("name", ["sd-ip", "flux-ip"])
def test_a_copy_of_a_pipeline_takes_its_inputs(
    name: str, copied: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    inputs = Steering(EDITS).inputs(space, pipe, **source(name))
    wanted = call(pipe, name, inputs, 4, num_images_per_prompt=2)
    other = COPIES[copied](pipe)
    other.set_progress_bar_config(disable=True)
    assert np.array_equal(call(other, name, inputs, 4, num_images_per_prompt=2), wanted)


def test_a_copy_of_another_kind_takes_inputs_too(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes["sd-ip"]
    started = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    started.set_progress_bar_config(disable=True)
    more = {"image": PICTURE, "strength": 0.5, "steps": 4}
    both = call(started, "sd-ip", Steering(EDITS).inputs(space, pipe, **source("sd-ip")), 2, **more)
    for row in range(2):
        given = source("sd-ip", slice(row, row + 1))
        alone = call(started, "sd-ip", Steering(EDITS).inputs(space, pipe, **given), 1, **more)
        np.testing.assert_allclose(both[row], alone[0], atol=2e-3)


def saved(rows: Tensor) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(rows, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("negative", [None, torch.full((2, 1, 3), -1.0)])
@pytest.mark.parametrize(
    "moved",
    [
        copy.deepcopy,
        lambda rows: pickle.loads(pickle.dumps(rows)),
        lambda rows: rows.double().cpu(),
        lambda rows: torch.load(saved(rows)),
    ],
)
def test_embeddings_stay_apart_when_they_are_moved(
    moved: Callable[[Tensor], Tensor], negative: Tensor | None
) -> None:
    positive = torch.arange(6.0).view(2, 1, 3)
    rows = moved(OneAPicture.of(positive, negative))
    assert len(rows) == (2 if negative is None else 4)
    whole = torch.cat([rows] * 4)
    assert type(whole) is Tensor
    torch.testing.assert_close(whole, positive.repeat_interleave(2, 0).to(whole))
    first, second = (torch.cat([half] * 2) for half in rows.chunk(2))
    torch.testing.assert_close(second, positive.to(second))
    torch.testing.assert_close(
        first, (torch.zeros(2, 1, 3) if negative is None else negative).to(first)
    )
    with pytest.raises(UserError, match="2 embeddings for 3 pictures; give a prompt for each"):
        torch.cat([rows] * 3)
    assert len(torch.cat([rows, rows + 1])) == 2 * len(rows)


def test_a_pipeline_that_hands_its_ip_adapter_no_embedding_says_so(
    pipes: dict[str, Any], space: FeatureSpace, tmp_path: Path
) -> None:
    unet = pipelines.unet(in_channels=8)
    parts = pipes["sd-ip"].components | {"unet": unet}
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipelines.save_unet_ip_adapter(unet, tmp_path / "ip.safetensors")
    pipe.load_ip_adapter(
        tmp_path, subfolder="", weight_name="ip.safetensors", image_encoder_folder=None
    )
    with pytest.raises(UserError, match=r"images alone and no embedding; unload_ip_adapter\(\)"):
        Steering().inputs(space, pipe, embedding=TWO[:1], prompt="a cat")


@pytest.mark.parametrize("name", ["sd-ip", "sdxl-ip", "flux-ip"])
def test_one_embedding_for_several_prompts_is_as_diffusers_has_it(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    Steering().inputs(space, pipe, **source(name))  # the pipeline has seen a batch
    one = Steering().inputs(space, pipe, embedding=TWO[:1])
    both = call(pipe, name, one | {"prompt": PROMPTS}, 2)
    for row, prompt in enumerate(PROMPTS):
        alone = call(pipe, name, one | {"prompt": prompt}, 1)
        np.testing.assert_allclose(both[row], alone[0], atol=2e-3)


@pytest.mark.parametrize(
    ("begin", "end", "which"), [(0.0, 0.5, slice(0, 5)), (0.7, 1.0, slice(7, 10))]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_schedule_counts_the_steps_that_run(
    name: str, begin: float, end: float, which: slice, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    steering = Steering(EDITS, begin=begin, end=end)
    assert steps_edited(pipes[name], name, space, steering) == set(range(STEPS)[which])


def steps_edited(
    pipe: Any, name: str, space: FeatureSpace, steering: Steering, **more: Any
) -> set[int]:
    """Which of the steps that ran were edited."""
    given = source(name, slice(0, 1))
    inputs = steering.inputs(space, pipe, **given)
    with steering.scheduled(space, pipe, **given), seen(pipe, space) as calls:
        call(pipe, name, inputs, 1, steps=more.pop("steps", STEPS), **more)
    return {n for n, found in enumerate(edited(calls, inputs, pipelines.DIM)) if found}


STARTED = {
    "sd-ip": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl-ip": diffusers.StableDiffusionXLImg2ImgPipeline,
    "sdxl-pooled": diffusers.StableDiffusionXLImg2ImgPipeline,
    "flux-ip": diffusers.FluxImg2ImgPipeline,
    "sd3-pooled": diffusers.StableDiffusion3Img2ImgPipeline,
    "kandinsky": diffusers.KandinskyV22Img2ImgPipeline,
}


def started(name: str, pipes: dict[str, Any]) -> Any:
    """The pipeline of a family that starts from a picture."""
    pipe = STARTED[name](**pipes[name].components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", STARTED)
def test_from_a_picture_the_last_steps_run_and_they_are_counted(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = started(name, pipes)
    steering = Steering(EDITS, end=0.6)
    more = {"image": PICTURE, "strength": 0.5}
    assert steps_edited(pipe, name, space, steering, **more) == {0, 1, 2}


def test_inpainting_counts_alike(pipes: dict[str, Any], space: FeatureSpace) -> None:
    pipe = diffusers.StableDiffusionInpaintPipeline(
        **pipes["sd-ip"].components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    mask = Image.new("L", PICTURE.size, 255)
    more = {"image": PICTURE, "mask_image": mask, "strength": 0.5}
    steering = Steering(EDITS, begin=0.4)
    assert steps_edited(pipe, "sd-ip", space, steering, **more) == {2, 3, 4}


class Reads(TorchDispatchMode):
    """Counts where steering reads values of tensors, for which the CPU would wait for a GPU."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, given: tuple = (), named: dict[str, Any] | None = None
    ) -> Any:
        aten, kind = torch.ops.aten, function.overloadpacket
        reads = kind in (aten._local_scalar_dense, aten.nonzero, aten.equal)
        if kind in (aten.index, aten.index_put_):
            reads = any(one is not None and one.dtype is torch.bool for one in given[1])
        frame: Any = sys._getframe() if reads else None
        while frame is not None and "mms_apps/steering" not in frame.f_code.co_filename:
            frame = frame.f_back
        self.count += frame is not None
        return function(*given, **named or {})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_schedule_reads_nothing_of_what_a_gpu_computes(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, given = pipes[name], source(name)
    steering = Steering(EDITS, begin=0.5)
    inputs = steering.inputs(space, pipe, **given)
    with steering.scheduled(space, pipe, **given), Reads() as reads:
        call(pipe, name, inputs, 2, steps=4)
    assert reads.count == 0


def test_a_controlnet_counts_alike(pipes: dict[str, Any], space: FeatureSpace) -> None:
    parts = pipes["sd-ip"].components
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=controlnet(parts["unet"]), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    steering = Steering(EDITS, end=0.5)
    assert steps_edited(pipe, "sd-ip", space, steering, image=PICTURE) == {0, 1, 2, 3, 4}


def controlnet(unet: Any) -> Any:
    config = unet.config
    return diffusers.ControlNetModel(
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=config.down_block_types,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        conditioning_embedding_out_channels=(4, 8),
        addition_embed_type=config.addition_embed_type,
        addition_time_embed_dim=config.addition_time_embed_dim,
        projection_class_embeddings_input_dim=config.projection_class_embeddings_input_dim,
    )


def test_a_controlnet_that_reads_the_pooled_prompt_is_scheduled_too(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    parts = pipes["sdxl-pooled"].components
    pipe = diffusers.StableDiffusionXLControlNetPipeline(
        **parts, controlnet=controlnet(parts["unet"])
    )
    pipe.set_progress_bar_config(disable=True)
    steering, given = Steering(EDITS, end=0.5), {"prompt": "a cat"}
    inputs = steering.inputs(space, pipe, **given)
    pooled: list[Tensor] = []
    with steering.scheduled(space, pipe, **given):
        handle = pipe.controlnet.register_forward_pre_hook(
            lambda module, positional, named: pooled.append(
                named["added_cond_kwargs"]["text_embeds"][-1].clone()
            ),
            with_kwargs=True,
        )
        call(pipe, "sdxl-pooled", inputs, 1, steps=4, image=PICTURE)
        handle.remove()
    steered = inputs["pooled_prompt_embeds"][0]
    assert [torch.allclose(row, steered) for row in pooled] == [True, True, False, False]


def test_several_calls_within_a_schedule_each_begin_anew(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, steering = pipes["unclip"], Steering(EDITS, end=0.5)
    given = source("unclip", slice(0, 1))
    inputs = steering.inputs(space, pipe, **given)
    with steering.scheduled(space, pipe, **given):
        first = call(pipe, "unclip", inputs, 1, steps=4)
        second = call(pipe, "unclip", inputs, 1, steps=4)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", STARTED)
def test_a_call_that_ran_no_further_does_not_count_for_the_next(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = started(name, pipes)
    steering, given = Steering(EDITS, end=0.5), source(name, slice(0, 1))
    inputs = steering.inputs(space, pipe, **given)
    with steering.scheduled(space, pipe, **given), seen(pipe, space) as calls:
        call(pipe, name, inputs, 1, steps=4, image=PICTURE, strength=0.5)
        call(pipe, name, inputs, 1, steps=8, image=PICTURE, strength=0.5)
    assert edited(calls, inputs, pipelines.DIM) == [True, False, True, True, False, False]


def test_a_call_that_was_broken_off_does_not_count_for_the_next(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = STARTED["sd-ip"](**pipes["sd-ip"].components)
    pipe.set_progress_bar_config(disable=True)
    steering, given = Steering(EDITS, end=0.5), source("sd-ip", slice(0, 1))
    inputs = steering.inputs(space, pipe, **given)

    def broken_off(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise KeyboardInterrupt
        return tensors

    more = {"image": PICTURE, "callback_on_step_end": broken_off}
    with steering.scheduled(space, pipe, **given), seen(pipe, space) as calls:
        with pytest.raises(KeyboardInterrupt):
            call(pipe, "sd-ip", inputs, 1, steps=4, strength=1.0, **more)
        call(pipe, "sd-ip", inputs, 1, steps=4, strength=0.5, image=PICTURE)
    assert edited(calls, inputs, pipelines.DIM) == [True, True, True, False]


class InViews(diffusers.StableDiffusionPipeline):
    """Goes on with a copy of the scheduler's state in each step, as panoramas do for each view."""

    def progress_bar(self, *positional: Any, **named: Any) -> Any:
        state = [copy.deepcopy(self.scheduler.__dict__)]
        step = self.scheduler.step

        def from_a_copy(*given: Any, **more: Any) -> Any:
            found = step(*given, **more)
            state[0] = copy.deepcopy(self.scheduler.__dict__ | {"step": None})
            self.scheduler.__dict__.update(state[0] | {"step": from_a_copy})
            return found

        self.scheduler.__dict__.update(state[0] | {"step": from_a_copy})
        return super().progress_bar(*positional, **named)


@pytest.mark.parametrize("kind", [InViews, diffusers.StableDiffusionPanoramaPipeline])
@pytest.mark.parametrize(("begin", "which"), [(0.5, {2, 3}), (0.0, {0, 1})])
def test_copies_of_the_timesteps_are_counted_on(
    kind: Any,
    begin: float,
    which: set[int],
    pipes: dict[str, Any],
    space: FeatureSpace,
) -> None:
    parts = pipes["sd-ip"].components | {"scheduler": diffusers.DDIMScheduler()}
    pipe = kind(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    steering = Steering(EDITS, begin=begin, end=begin + 0.5)
    assert steps_edited(pipe, "sd-ip", space, steering, steps=4) == which
    assert steps_edited(pipe, "sd-ip", space, steering, steps=4) == which


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_a_denoiser_may_be_given_its_arguments_by_their_places(
    count: int, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, steering = pipes["sdxl-pooled"], Steering(EDITS, begin=0.5)
    inputs = steering.inputs(space, pipe, prompt="a cat")
    pipe.scheduler.set_timesteps(4)
    found = []
    with steering.scheduled(space, pipe, prompt="a cat"):
        handle = pipe.unet.register_forward_pre_hook(
            lambda module, positional, named: found.append((positional, named)), with_kwargs=True
        )
        for timestep in pipe.scheduler.timesteps:
            given = {
                "sample": torch.zeros(1, 4, 8, 8),
                "timestep": timestep,
                "encoder_hidden_states": inputs["prompt_embeds"],
                "added_cond_kwargs": {
                    "text_embeds": inputs["pooled_prompt_embeds"],
                    "time_ids": torch.zeros(1, 6),
                },
            }
            first = [given.pop(name) for name in list(given)[:count]]
            pipe.unet(*first, **given)
        handle.remove()
    names = ["sample", "timestep", "encoder_hidden_states"][:count]
    states = []
    for positional, named in found:
        assert len(positional) == count and not set(names) & set(named)
        by_name = dict(zip(names, positional, strict=True)) | named
        states.append(torch.equal(by_name["encoder_hidden_states"], inputs["prompt_embeds"]))
    assert states == [False, False, True, True]


def test_a_copy_made_within_a_schedule_is_free_of_it_afterwards(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, steering, given = pipes["unclip"], Steering(EDITS, begin=0.5), source("unclip")
    inputs = steering.inputs(space, pipe, **given)
    wanted = call(pipe, "unclip", inputs, 2)
    with steering.scheduled(space, pipe, **given):
        other = copy.deepcopy(pipe)
        call(pipe, "unclip", inputs, 2)
    assert np.array_equal(call(other, "unclip", inputs, 2), wanted)


def test_a_compiled_denoiser_names_its_arguments_too(pipes: dict[str, Any]) -> None:
    unet = pipes["sd-ip"].unet
    names = ["sample", "timestep", "encoder_hidden_states"]
    for module in (unet, torch.compile(unet, backend="eager")):
        assert names_of(module, (0, 0, 0)) == names


class Sum(torch.nn.Module):
    """Stands for a denoiser."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample + timestep


@pytest.mark.parametrize("how", ["not", "torch.compile", "compile"])
def test_a_denoiser_that_is_compiled_already_is_hooked_without_compiling_anew(how: str) -> None:
    module: Any = Sum()
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    if how == "torch.compile":
        module = torch.compile(module, backend=backend)
    if how == "compile":
        module.compile(backend=backend)
    one, other, ten = torch.ones(2), torch.ones(2), torch.full((2,), 10.0)
    assert module(one, timestep=other).tolist() == [2, 2]
    with before_calls(module, lambda module, positional, named: ((ten,), named)):
        assert module(one, timestep=other).tolist() == [11, 11]
    with before_calls(module, lambda module, positional, named: None):
        assert module(one, timestep=other).tolist() == [2, 2]
    assert module(one, timestep=other).tolist() == [2, 2]
    assert len(graphs) == (how != "not")


@pytest.mark.parametrize("name", ["unclip", "flux-ip"])
def test_a_schedule_within_which_nothing_or_a_copy_was_called_is_refused(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, given = pipes[name], source(name, slice(0, 1))
    other = copy.deepcopy(pipe)
    steering = Steering(EDITS, begin=0.5)
    inputs = steering.inputs(space, pipe, **given)
    for called in ([], [other]):
        with (
            pytest.raises(UserError, match="was not called within its schedule"),
            steering.scheduled(space, pipe, **given),
        ):
            for each in called:
                call(each, name, inputs, 1)
    with Steering(EDITS).scheduled(space, pipe, **given):  # nothing is to be undone
        call(other, name, inputs, 1)


THREE = torch.randn(3, pipelines.DIM, generator=torch.Generator().manual_seed(4))
THREE_PROMPTS = ["a cat", "two dogs", "a red car at night"]


def chosen(name: str, rows: list[int]) -> dict[str, Any]:
    """Some of three things to edit."""
    prompts = [THREE_PROMPTS[row] for row in rows]
    return {"prompt": prompts} if "pooled" in name else {"embedding": THREE[rows]}


@pytest.mark.parametrize(
    ("called", "scheduled"), [([0], [1]), ([0, 1], [0, 2]), ([0, 1], [2, 1]), ([0], [0, 1])]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_schedule_for_another_picture_is_refused(
    name: str,
    called: list[int],
    scheduled: list[int],
    pipes: dict[str, Any],
    space: FeatureSpace,
) -> None:
    pipe, steering = pipes[name], Steering(EDITS, begin=0.5)
    inputs = steering.inputs(space, pipe, **chosen(name, called))
    with (
        pytest.raises(UserError, match="called with other embeddings"),
        steering.scheduled(space, pipe, **chosen(name, scheduled)),
    ):
        call(pipe, name, inputs, len(called))


@pytest.mark.parametrize("steering", [Steering(), Steering((Edit(3, 4.0),))])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_edits_within_a_schedule_are_refused(
    name: str, steering: Steering, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, given = pipes[name], chosen(name, [0])
    inputs = steering.inputs(space, pipe, **given)
    with (
        pytest.raises(UserError, match="called with other embeddings"),
        Steering(EDITS, end=0.5).scheduled(space, pipe, **given),
    ):
        call(pipe, name, inputs, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_schedule_knows_embeddings_in_any_order_and_one_after_another(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, steering = pipes[name], Steering(EDITS, end=0.5)
    inputs = steering.inputs(space, pipe, **chosen(name, [0, 1]))
    found = []
    for order in ([0, 1], [1, 0], [1, 0, 0]):
        with steering.scheduled(space, pipe, **chosen(name, order)):
            found.append(call(pipe, name, inputs, 2))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-3)
    with steering.scheduled(space, pipe, **chosen(name, [0, 1])):
        for row in range(2):
            call(pipe, name, steering.inputs(space, pipe, **chosen(name, [row])), 1)


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 300])
def test_stable_unclip_knows_its_embeddings_under_noise(
    level: int, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    adapter = adapter_for(pipes["unclip"], space)
    torch.manual_seed(0)
    steered = torch.randn(8, pipelines.DIM) * 40
    plain = steered + torch.randn(8, pipelines.DIM) * 40
    noised = adapter.pipe.noise_image_embeddings(steered.repeat(20, 1), level)
    distance = adapter.distances(noised, steered, plain)
    assert torch.equal(distance.argmin(1), torch.arange(8).repeat(20))
    assert distance.min(1).values.isfinite().all()
    other = adapter.pipe.noise_image_embeddings(plain.repeat(20, 1), level)
    assert adapter.distances(other, steered, plain).isinf().all()
    assert adapter.distances(torch.zeros_like(other), steered, plain).isinf().all()
    moved = adapter.rows(noised, distance, steered, plain) - noised
    clean = [
        adapter.pipe.noise_image_embeddings(rows.repeat(20, 1), level, noise=torch.zeros(160, 16))
        for rows in (steered, plain)
    ]
    torch.testing.assert_close(moved, clean[1] - clean[0], atol=1e-3, rtol=1e-4)


def calls_before(scheduler: Any, end: float, start: int = 0) -> int:
    """How many calls of the denoiser lie before a share of the steps of ten that run."""
    scheduler.set_timesteps(10)
    counter = StepCounter(SimpleNamespace(scheduler=scheduler))
    sample = torch.zeros(1, 4, 2, 2)
    shares = []
    for timestep in scheduler.timesteps[start:]:
        shares.append(counter.share(timestep))
        counter.share(timestep)  # a ControlNet, or a second call of guidance
        sample = scheduler.step(sample, timestep, sample).prev_sample
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] < 1
    return sum(share < end for share in shares)


TWICE = ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]


@pytest.mark.parametrize("steps", [1, 4, 5, 9])
@pytest.mark.parametrize("name", [*TWICE, "FlowMatchHeunDiscreteScheduler"])
def test_a_schedule_ends_after_a_step_of_two_calls(name: str, steps: int) -> None:
    scheduler = getattr(diffusers, name)()
    assert calls_before(scheduler, steps / 10 - 0.01) == 2 * steps


@pytest.mark.parametrize("name", TWICE)
def test_steps_of_two_calls_are_counted_from_a_picture_on(name: str) -> None:
    assert calls_before(getattr(diffusers, name)(), 0.49, start=8) == 6  # of six steps, three


@pytest.mark.parametrize(
    ("prk", "calls"), [(True, [4, 8, 12, 13, 14, 15]), (False, [2, 3, 4, 5, 6, 7])]
)
def test_a_schedule_ends_after_a_step_of_pndm(prk: bool, calls: list[int]) -> None:
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=not prk)
    found = [calls_before(scheduler, step / 10 - 0.01) for step in range(1, 7)]
    assert found == calls


@pytest.mark.parametrize("earlier", [1, 4, 25])
def test_an_earlier_call_says_nothing_of_a_loop_of_ones_own(earlier: int) -> None:
    scheduler = diffusers.DDIMScheduler()
    counter = StepCounter(SimpleNamespace(scheduler=scheduler, _num_timesteps=earlier))
    scheduler.set_timesteps(10)
    shares = [float(counter.share(timestep)) for timestep in scheduler.timesteps]
    assert shares == pytest.approx([step / 10 for step in range(10)])


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler"])
def test_steps_of_one_call_are_counted_as_they_are(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    assert calls_before(scheduler, 0.5) == 5
    assert calls_before(scheduler, 0.5, start=4) == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_guidance_moves_the_conditional_rows_alone(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    more = {"true_cfg_scale": 3.0} if name == "flux-ip" else {"guidance_scale": 3.0}
    words = {} if name == "kandinsky" else {"negative_prompt": "a car"}
    only_conditional_rows_change(pipes[name], name, space, words, **more)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", ["sd-ip", "sdxl-ip", "sdxl-pooled"])
def test_perturbed_attention_guidance_moves_the_conditional_rows_alone(
    name: str, guidance: float, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    parts = pipes[name].components
    kind = (
        diffusers.StableDiffusionPAGPipeline
        if name == "sd-ip"
        else diffusers.StableDiffusionXLPAGPipeline
    )
    settings = {"requires_safety_checker": False} if name == "sd-ip" else {}
    pipe = kind(**parts, pag_applied_layers="mid", **settings)
    pipe.set_progress_bar_config(disable=True)
    guided = guidance > 1
    more = {"guidance_scale": guidance, "pag_scale": 2.0}
    only_conditional_rows_change(pipe, name, space, {}, guided=guided, **more)


def only_conditional_rows_change(
    pipe: Any,
    name: str,
    space: FeatureSpace,
    words: dict[str, Any],
    guided: bool = True,
    **more: Any,
) -> None:
    """What the denoiser sees where a schedule undoes the edits is what it sees without edits."""
    steering, given = Steering(EDITS, begin=0.5), source(name)
    plain = Steering().inputs(space, pipe, **given, **words, guided=guided)
    inputs = steering.inputs(space, pipe, **given, **words, guided=guided)
    with seen(pipe, space) as wanted:
        call(pipe, name, plain, 2, **more)
    with steering.scheduled(space, pipe, **given), seen(pipe, space) as found:
        call(pipe, name, inputs, 2, **more)
    half = len(found) // 2
    assert len(found) == len(wanted)
    for ours, theirs in zip(found[:half], wanted[:half], strict=True):
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, atol=2e-3, rtol=1e-3)
    changed = [
        int((left != right).any(1).sum())
        for ours, theirs in zip(found[half:], wanted[half:], strict=True)
        for left, right in zip(ours, theirs, strict=True)
    ]
    assert max(changed) in (2, 4)  # each of the two, twice where attention is perturbed


@pytest.mark.parametrize("name", OF_WORDS)
def test_a_negative_prompt_can_be_given(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    more = {"true_cfg_scale": 3.0} if name == "flux-ip" else {"guidance_scale": 3.0}
    pictures = [
        call(pipe, name, Steering(EDITS).inputs(space, pipe, **source(name), **words), 2, **more)
        for words in ({}, {"negative_prompt": "a car"}, {"negative_prompt": ["a car", "a bus"]})
    ]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-4
    np.testing.assert_allclose(pictures[1][0], pictures[2][0], atol=2e-3)
    with pytest.raises(UserError, match="3 negative prompts for 2 embeddings"):
        Steering().inputs(space, pipe, **source(name), negative_prompt=["a", "b", "c"])


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_negative_embedding_can_be_given(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    given = {**source(name), "negative_embedding": TWO[:1] * 2}
    if name == "unclip":
        with pytest.raises(UserError, match="takes no negative embedding; give a negative prompt"):
            Steering().inputs(space, pipe, **given)
        return
    words = {"negative_prompt": "a car"} if name == "flux-ip" else {}
    more = {"true_cfg_scale": 3.0} if name == "flux-ip" else {"guidance_scale": 3.0}
    usual = Steering().inputs(space, pipe, **source(name), **words)
    other = Steering().inputs(space, pipe, **given, **words)
    pictures = [call(pipe, name, inputs, 2, **more) for inputs in (usual, other)]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-4


def test_a_decoder_without_words_says_so(pipes: dict[str, Any], space: FeatureSpace) -> None:
    with pytest.raises(UserError, match="reads no words"):
        Steering().inputs(space, pipes["kandinsky"], embedding=TWO, negative_prompt="a car")


Placed = Callable[[Any], None]
PLACEMENTS: dict[str, Placed] = {
    "offloaded in parts": lambda module: accelerate.cpu_offload(module, torch.device("cpu")),
    "stored in float8": lambda module: module.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    ),
    "offloaded in groups": lambda module: module.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
    ),
    "in half precision": lambda module: module.to(torch.bfloat16),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_any_placement_and_dtype_works(
    name: str, placement: str, fresh: Callable[[str], Any], space: FeatureSpace
) -> None:
    pipe = fresh(name)
    if placement == "in half precision":
        pipe.to(torch.bfloat16)
    else:
        PLACEMENTS[placement](adapter_for(pipe, space).denoiser)
    steering = Steering(EDITS, end=0.5)
    given = source(name)
    inputs = steering.inputs(space, pipe, **given)
    with steering.scheduled(space, pipe, **given):
        picture = call(pipe, name, inputs, 2)
    assert np.isfinite(picture).all()
    if placement.startswith("offloaded"):
        usual = fresh(name)
        with steering.scheduled(space, usual, **given):
            wanted = call(usual, name, steering.inputs(space, usual, **given), 2)
        np.testing.assert_allclose(picture, wanted, atol=2e-3)


@pytest.mark.parametrize("name", ["kandinsky", "sd-ip", "flux-ip"])
def test_a_projection_in_float8_stays_in_its_group(
    name: str, fresh: Callable[[str], Any], space: FeatureSpace
) -> None:
    pipe = fresh(name)
    denoiser = adapter_for(pipe, space).denoiser
    PLACEMENTS["stored in float8"](denoiser)
    PLACEMENTS["offloaded in groups"](denoiser)
    inputs = Steering(EDITS).inputs(space, pipe, **source(name))
    found = denoiser.encoder_hid_proj
    (projection,) = getattr(found, "image_projection_layers", [found])
    linear = projection.image_embeds
    assert linear._diffusers_hook.get_hook("group_offloading") is not None
    given = torch.randn(2, pipelines.DIM, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        wanted = given @ linear.weight.float().T + linear.bias.float()
        width = projection.norm.normalized_shape
        wanted = torch.nn.functional.layer_norm(wanted.view(2, -1, *width), width)
        torch.testing.assert_close(projection(given), wanted, atol=1e-4, rtol=1e-4)
        assert linear.weight.dtype is torch.float8_e4m3fn
    assert np.isfinite(call(pipe, name, inputs, 2)).all()


@pytest.mark.parametrize("name", ["unclip", "sd-ip", "sdxl-ip", "flux-ip"])
@pytest.mark.parametrize("placement", ["offloaded in parts", "in half precision"])
def test_a_placed_image_encoder_embeds_alike(
    name: str, placement: str, fresh: Callable[[str], Any], space: FeatureSpace
) -> None:
    usual, pipe = fresh(name), fresh(name)
    PLACEMENTS[placement](pipe.image_encoder)
    found, wanted = (adapter_for(p, space).embed_image(PICTURE).float() for p in (pipe, usual))
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)


class Silent(diffusers.StableDiffusionXLPipeline):
    """A subclass that hides what its calls take."""

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return super().__call__(*positional, **named)


def test_a_pipeline_is_known_by_what_it_takes(pipes: dict[str, Any], space: FeatureSpace) -> None:
    for name in ("sdxl-ip", "sdxl-pooled"):
        own = Silent(**pipes[name].components)
        assert type(adapter_for(own, space)) is type(adapter_for(pipes[name], space))
    other = type("Painter", (diffusers.KandinskyV22Pipeline,), {})(**pipes["kandinsky"].components)
    assert type(adapter_for(other, space)) is type(adapter_for(pipes["kandinsky"], space))


def test_an_adapter_that_reads_no_pooled_embedding_gets_words(
    fresh: Callable[[str], Any], space: FeatureSpace
) -> None:
    from diffusers.models.embeddings import (
        IPAdapterFaceIDImageProjection,
        IPAdapterFullImageProjection,
        IPAdapterPlusImageProjection,
    )

    for name in ("sd-ip", "flux-ip"):
        pipe = fresh(name)
        layers = adapter_for(pipe, space).denoiser.encoder_hid_proj.image_projection_layers
        for other in (
            IPAdapterPlusImageProjection(embed_dims=32, output_dims=32, hidden_dims=32, depth=1),
            IPAdapterFullImageProjection(),
            IPAdapterFaceIDImageProjection(),
        ):
            layers[0] = other
            with pytest.raises(UserError, match=type(other).__name__):
                Steering().inputs(space, pipe, embedding=TWO)


def test_several_ip_adapters_get_words(fresh: Callable[[str], Any], space: FeatureSpace) -> None:
    for name in ("sdxl-ip", "flux-ip"):
        pipe = fresh(name)
        layers = adapter_for(pipe, space).denoiser.encoder_hid_proj.image_projection_layers
        layers.append(layers[0])
        with pytest.raises(UserError, match="2 IP-Adapters are loaded"):
            Steering().inputs(space, pipe, embedding=TWO)


def test_embeddings_of_another_size_get_words(space: FeatureSpace) -> None:
    pipe = pipelines.kandinsky22()
    pipe.unet.register_to_config(encoder_hid_dim=1280)
    with pytest.raises(UserError, match=r"of 1280 dimensions.*have 16"):
        Steering().inputs(space, pipe, embedding=TWO)


def with_encoder(space: FeatureSpace, **parts: Any) -> FeatureSpace:
    """The space with an encoder of these methods, and a fingerprint of its own."""
    found = copy.copy(space)
    found._encoder = SimpleNamespace(device="cpu", **parts)  # type: ignore[assignment]
    found.config = replace(space.config, encoder_fingerprint=f"of {sorted(parts)} {id(found)}")
    return found


@pytest.mark.parametrize("name", ["unclip", "sd-ip", "sdxl-ip", "flux-ip"])
def test_the_encoder_of_another_space_is_noticed_and_the_right_one_asked_once(
    name: str, fresh: Callable[[str], Any], space: FeatureSpace
) -> None:
    pipe = fresh(name)
    own = adapter_for(pipe, space).embed_image
    asked: list[int] = []

    def right(images: list[Image.Image]) -> Tensor:
        asked.append(len(images))
        return torch.nn.functional.normalize(own(images[0]), dim=1)

    def wrong(images: list[Image.Image]) -> Tensor:
        return torch.nn.functional.normalize(torch.ones(1, pipelines.DIM), dim=1)

    same = with_encoder(space, encode_images=right)
    for _ in range(3):
        Steering(EDITS).inputs(same, pipe, embedding=TWO[:1])
    assert asked == [1]
    other = with_encoder(space, encode_images=wrong)
    for given in ({"embedding": TWO[:1]}, {"image": PICTURE}):
        with pytest.raises(UserError, match="reads embeddings of another encoder"):
            Steering(EDITS).inputs(other, pipe, **given)


@pytest.mark.parametrize("name", ["sdxl-pooled", "sd3-pooled"])
def test_the_text_encoder_of_another_space_is_noticed(
    name: str, fresh: Callable[[str], Any], space: FeatureSpace
) -> None:
    pipe = fresh(name)
    own = adapter_for(pipe, space).embed_prompt
    same = with_encoder(space, encode_texts=lambda texts: own(texts))
    Steering(EDITS).inputs(same, pipe, prompt="a cat")
    other = with_encoder(space, encode_texts=lambda texts: own(texts).roll(1, 1))
    with pytest.raises(UserError, match="reads embeddings of another encoder"):
        Steering(EDITS).inputs(other, pipe, prompt="a cat")


def test_a_decoder_is_guided_away_from_the_embedding_of_an_empty_picture(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    empty = torch.arange(16.0)[None]

    def encode_image(pixels: Tensor) -> Tensor:
        assert pixels.shape == (1, 3, 8, 8) and not pixels.any()
        assert pixels.dtype == known.encoder.dtype
        return empty

    known = with_encoder(
        space,
        preprocess=lambda image: torch.ones(3, 8, 8),
        model=SimpleNamespace(encode_image=encode_image),
        dtype=torch.bfloat16,
    )
    inputs = Steering(EDITS).inputs(known, pipes["kandinsky"], embedding=TWO)
    torch.testing.assert_close(inputs["negative_image_embeds"], empty.expand(2, -1))
    with pytest.warns(UserWarning, match="zeros stand for the negative embedding"):
        inputs = Steering(EDITS).inputs(space, pipes["kandinsky"], embedding=TWO)
    assert not inputs["negative_image_embeds"].any()
