"""Steering in pipelines of each class, saved to a folder and loaded again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering import Edit, Steering
from mms_apps.steering.adapters.choose import adapter_for
from tests.steering import pipelines

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
EDITS = (Edit(2, 3.0), Edit(5, -2.0))
STEPS = 4


NAMES = ("unclip", "kandinsky", "sd-ip", "sdxl-ip", "sdxl-pooled", "flux-ip", "sd3-pooled")
OF_PHOTOS = ("unclip", "sd-ip", "sdxl-ip", "flux-ip")


def source(name: str) -> dict[str, Any]:
    """What is edited."""
    if name == "kandinsky":
        return {"embedding": torch.randn(1, 16, generator=torch.Generator().manual_seed(3))}
    return {"prompt": "a cat"} if "pooled" in name else {"image": PHOTO, "prompt": "a cat"}


def generate(pipe: Any, name: str, inputs: dict[str, Any]) -> np.ndarray:
    settings: dict[str, Any] = {"height": 16, "width": 16}
    if name == "kandinsky":
        settings = {"height": 32, "width": 32}
    if name in ("flux-ip", "sd3-pooled"):
        settings |= {"max_sequence_length": 16}
    return pipe(
        **inputs,
        **settings,
        num_inference_steps=STEPS,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images


@pytest.mark.parametrize("name", NAMES)
def test_edits_change_the_picture_and_no_edit_changes_nothing(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    none = generate(pipe, name, Steering().inputs(space, pipe, **source(name)))
    steered = generate(pipe, name, Steering(EDITS).inputs(space, pipe, **source(name)))
    assert np.isfinite(steered).all()
    assert np.abs(steered - none).max() > 1e-3
    again = generate(pipe, name, Steering().inputs(space, pipe, **source(name)))
    assert np.array_equal(none, again)


@pytest.mark.parametrize("name", OF_PHOTOS)
def test_without_edits_it_is_what_the_pipeline_makes_of_the_photo(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    own: dict[str, Any] = {"prompt": "a cat"}
    own |= {"image": PHOTO} if name == "unclip" else {"ip_adapter_image": PHOTO}
    ours = generate(pipe, name, Steering().inputs(space, pipe, image=PHOTO, prompt="a cat"))
    np.testing.assert_allclose(ours, generate(pipe, name, own), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_edits_some_steps_and_leaves_the_pipeline_as_it_was(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    plain = generate(pipe, name, Steering().inputs(space, pipe, **source(name)))
    hooks = dict(adapter_for(pipe, space).denoiser._forward_pre_hooks)
    found = {}
    for begin, end in ((0.0, 1.0), (0.5, 1.0), (0.0, 0.01), (0.9, 0.95)):
        steering = Steering(EDITS, begin=begin, end=end)
        inputs = steering.inputs(space, pipe, **source(name))
        with steering.scheduled(space, pipe, **source(name)):
            found[begin, end] = generate(pipe, name, inputs)
    whole = generate(pipe, name, Steering(EDITS).inputs(space, pipe, **source(name)))
    assert np.array_equal(found[0.0, 1.0], whole)
    assert np.abs(found[0.5, 1.0] - whole).max() > 1e-4
    assert np.abs(found[0.5, 1.0] - plain).max() > 1e-4
    assert np.abs(found[0.0, 0.01] - plain).max() > 1e-5  # the first step
    np.testing.assert_allclose(found[0.9, 0.95], plain, atol=1e-3)  # no step lies there
    assert np.array_equal(
        plain, generate(pipe, name, Steering().inputs(space, pipe, **source(name)))
    )
    assert dict(adapter_for(pipe, space).denoiser._forward_pre_hooks) == hooks


@pytest.mark.parametrize("name", ["unclip", "kandinsky"])
def test_several_embeddings_at_once_are_those_alone(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes[name]
    embeddings = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    given = Steering(EDITS).inputs(space, pipe, embedding=embeddings, prompt="a cat")
    one = Steering(EDITS).inputs(space, pipe, embedding=embeddings[:1], prompt="a cat")
    torch.testing.assert_close(given["image_embeds"][:1], one["image_embeds"])
    assert len(generate(pipe, name, given)) == 2


def test_guidance_off_needs_no_negative_embedding(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe = pipes["sd-ip"]
    inputs = Steering(EDITS).inputs(space, pipe, image=PHOTO, prompt="a cat", guided=False)
    assert inputs["ip_adapter_image_embeds"][0].shape == (1, 1, 16)
    generate(pipe, "sd-ip", inputs | {"guidance_scale": 1.0})


def test_what_cannot_be_steered_is_said(pipes: dict[str, Any], space: FeatureSpace) -> None:
    steering = Steering(EDITS)
    with pytest.raises(UserError, match="or load an IP-Adapter"):
        steering.inputs(space, pipelines.stable_diffusion(), image=PHOTO)
    with pytest.raises(UserError, match="no image or text embedding of a CLIP enters it"):
        steering.inputs(space, pipelines.flux(), image=PHOTO)
    with pytest.raises(UserError, match="no image or text embedding of a CLIP enters it"):
        steering.inputs(space, object(), image=PHOTO)
    with pytest.raises(UserError, match="no image encoder of its own"):
        steering.inputs(space, pipes["kandinsky"], image=PHOTO)
    with pytest.raises(UserError, match="takes texts, not images"):
        steering.inputs(space, pipes["sdxl-pooled"], image=PHOTO)
    with pytest.raises(UserError, match="give an image or an embedding"):
        steering.inputs(space, pipes["unclip"], prompt="a cat")
    with pytest.raises(UserError, match="3 prompts for 1 embeddings"):
        steering.inputs(space, pipes["unclip"], image=PHOTO, prompt=["a", "b", "c"])
    with pytest.raises(UserError, match=r"takes \[n, 16\]"):
        steering.inputs(space, pipes["unclip"], embedding=torch.zeros(1, 8))


def test_images_come_in_any_form(pipes: dict[str, Any], space: FeatureSpace) -> None:
    pipe, pixels = pipes["sd-ip"], np.asarray(PHOTO)
    one = Steering(EDITS).inputs(space, pipe, image=PHOTO)["ip_adapter_image_embeds"][0]
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for form in (pixels, pixels / 255, tensor, [PHOTO], (image for image in [PHOTO]), tensor[None]):
        found = Steering(EDITS).inputs(space, pipe, image=form)["ip_adapter_image_embeds"][0]
        torch.testing.assert_close(found, one)
    several = Steering(EDITS).inputs(space, pipe, image=torch.stack([tensor] * 3), prompt="a cat")
    assert several["prompt"] == ["a cat"] * 3
    with pytest.raises(UserError, match="no image to edit"):
        Steering(EDITS).inputs(space, pipe, image=[])
    no_prompt = Steering(EDITS).inputs(space, pipe, image=PHOTO, prompt=None)
    assert no_prompt["prompt"] == [""]
    array = np.ones((1, 16), np.float32)
    Steering(EDITS).inputs(space, pipe, embedding=array)


def test_prompts_are_texts_in_any_sequence(pipes: dict[str, Any], space: FeatureSpace) -> None:
    two = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    for name in ("sd-ip", "sdxl-pooled"):
        given = {"embedding": two} if name == "sd-ip" else {}
        for form in (("a", "b"), np.array(["a", "b"])):
            inputs = Steering(EDITS).inputs(
                space, pipes[name], **given, prompt=form, negative_prompt=form
            )
            if name == "sd-ip":
                assert inputs["prompt"] == inputs["negative_prompt"] == ["a", "b"]
    for wrong in (3, {"a": 1}, [None, "a"], [["a", "b"]]):
        with pytest.raises(UserError, match=r"prompts .*: give a text, or a list of texts"):
            Steering(EDITS).inputs(space, pipes["sd-ip"], embedding=two, prompt=wrong)
        with pytest.raises(UserError, match=r"negative prompts .*: give a text"):
            Steering(EDITS).inputs(space, pipes["sd-ip"], embedding=two, negative_prompt=wrong)


@pytest.mark.parametrize("name", ["sd-ip", "flux-ip", "kandinsky"])
def test_negative_embeddings_are_one_or_one_for_each(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    two, three = torch.ones(2, 16), torch.ones(3, 16)
    with pytest.raises(UserError, match="3 negative embeddings for 2 embeddings; give one, or"):
        Steering(EDITS).inputs(space, pipes[name], embedding=two, negative_embedding=three)


@pytest.mark.parametrize("prompt", [None, [], [None], 3, {"a": 1}])
@pytest.mark.parametrize("name", ["sdxl-pooled", "sd3-pooled"])
def test_no_prompt_to_edit_is_said(
    name: str, prompt: Any, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    for method in ("inputs", "scheduled"):
        with pytest.raises(UserError, match="give the text to edit"):
            found = getattr(Steering(EDITS), method)(space, pipes[name], prompt=prompt)
            found.__enter__()


@pytest.mark.parametrize("name", NAMES)
def test_no_embedding_to_edit_is_said(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    with pytest.raises(UserError, match="no embedding to edit"):
        Steering(EDITS).inputs(space, pipes[name], embedding=torch.zeros(0, 16))
    with (
        pytest.raises(UserError, match="no embedding to edit"),
        Steering(EDITS).scheduled(space, pipes[name], embedding=torch.zeros(0, 16)),
    ):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_come_as_arrays_too(
    name: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, steering = pipes[name], Steering(EDITS, end=0.5)
    tensor = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    found = []
    for embedding in (tensor, tensor.numpy()):
        negative = {"negative_embedding": embedding} if name in ("sd-ip", "kandinsky") else {}
        inputs = steering.inputs(space, pipe, embedding=embedding, **negative)
        with steering.scheduled(space, pipe, embedding=embedding):
            found.append(generate(pipe, name, inputs))
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("name", "freed"),
    [
        ("sdxl-pooled", "text_encoder_2"),
        ("sd3-pooled", "text_encoder"),
        ("sd3-pooled", "text_encoder_2"),
        ("sd-prompt", "text_encoder"),
    ],
)
def test_a_freed_text_encoder_is_what_is_missing(
    name: str, freed: str, pipes: dict[str, Any], space: FeatureSpace
) -> None:
    if name == "sd-prompt":
        pipe = pipelines.stable_diffusion()
    else:
        pipe = type(pipes[name])(**pipes[name].components)
    setattr(pipe, freed, None)
    with pytest.raises(UserError, match=f"lacks its {freed}; load"):
        Steering(EDITS).inputs(space, pipe, embedding=torch.ones(1, 16), prompt="a cat")


def test_a_pipeline_that_is_not_steered_by_prompts_needs_none_of_its_text_encoders(
    space: FeatureSpace,
) -> None:
    pipe = pipelines.flux()
    pipe.text_encoder = pipe.text_encoder_2 = None
    with pytest.raises(UserError, match="no image or text embedding of a CLIP enters it"):
        Steering(EDITS).inputs(space, pipe, embedding=torch.ones(1, 16))


@pytest.mark.parametrize("edits", [Edit(2, 3.0), [{"feature": 2}], [2]])
def test_edits_are_edits(edits: Any) -> None:
    with pytest.raises(UserError, match=r"give a tuple of Edit\(feature, strength\)"):
        Steering(edits)
