"""Steering a prompt's tokens, in Stable Diffusion without an IP-Adapter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from features.encoders.transformers import DualEncoder
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering import Edit, Steering
from mms_apps.steering.adapters.base import Call, pseudo_inverse
from mms_apps.steering.adapters.choose import adapter_for
from mms_apps.steering.adapters.prompt_tokens import PromptTokens
from tests.steering import pipelines

EDITS = (Edit(400, 2.0), Edit(292, -1.0))
PROMPTS = ["a woman", "man: dark skin tone"]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("prompts")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipelines.stable_diffusion_of_prompts().save_pretrained(folder)
    return loaded(folder)


def loaded(folder: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, inputs: dict[str, Any], pictures: int, **more: Any) -> np.ndarray:
    return pipe(
        **inputs,
        **{"height": 16, "width": 16, "num_inference_steps": 4} | more,
        output_type="np",
        generator=[torch.Generator().manual_seed(0) for _ in range(pictures)],
    ).images


def test_a_prompts_embedding_is_the_encoders(pipe: Any, embedded: FeatureSpace) -> None:
    adapter = adapter_for(pipe, embedded)
    assert isinstance(adapter, PromptTokens)
    found = F.normalize(adapter.embed_prompt(PROMPTS), dim=1)
    torch.testing.assert_close(found, embedded.encoder.encode_texts(PROMPTS).clone())


HOLDERS = {
    "open_clip": lambda linear: SimpleNamespace(text_projection=linear.weight.T),
    "open_clip, linear": lambda linear: SimpleNamespace(text_projection=linear),
    "open_clip, its tower apart": lambda linear: SimpleNamespace(
        text=SimpleNamespace(text_projection=linear.weight.T)
    ),
    "transformers": lambda linear: DualEncoder(torch.nn.ModuleDict({"text_projection": linear}), 0),
}


@pytest.mark.parametrize("library", HOLDERS)
def test_the_projection_is_found_in_any_librarys_encoder(
    library: str, pipe: Any, embedded: FeatureSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Steering(EDITS).inputs(embedded, pipe, prompt=PROMPTS)["prompt_embeds"]
    model = embedded.encoder.model
    linear = torch.nn.Linear(*model.text_projection.shape, bias=False)
    linear.weight.data = model.text_projection.data.T.clone()
    monkeypatch.setattr(embedded.encoder, "model", HOLDERS[library](linear))
    found = Steering(EDITS).inputs(embedded, pipe, prompt=PROMPTS)["prompt_embeds"]
    torch.testing.assert_close(found, wanted)


def test_without_edits_it_is_what_the_pipeline_makes_of_the_prompt(
    pipe: Any, embedded: FeatureSpace
) -> None:
    ours = draw(pipe, Steering().inputs(embedded, pipe, prompt=PROMPTS), 2)
    np.testing.assert_allclose(ours, draw(pipe, {"prompt": PROMPTS}, 2), atol=1e-4)


def test_the_moved_state_projects_to_the_steered_embedding(
    pipe: Any, embedded: FeatureSpace
) -> None:
    adapter = adapter_for(pipe, embedded)
    assert isinstance(adapter, PromptTokens)
    plain = adapter.embed_prompt(PROMPTS)
    steered = Steering(EDITS).apply(embedded, plain, "text").embedding
    states = Steering(EDITS).inputs(embedded, pipe, prompt=PROMPTS)["prompt_embeds"]
    before = Steering().inputs(embedded, pipe, prompt=PROMPTS)["prompt_embeds"]
    ids = pipe.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    for row, tokens in enumerate(ids.tolist()):
        end = tokens.index(pipe.tokenizer.eos_token_id)
        torch.testing.assert_close(
            states[row, end] @ adapter.projection, steered[row], atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(states[row, :end], before[row, :end])
        assert (states[row, end:] != before[row, end:]).any(1).all()


def test_batches_schedules_and_negative_prompts_hold_here_too(
    pipe: Any, embedded: FeatureSpace
) -> None:
    together = draw(pipe, Steering(EDITS).inputs(embedded, pipe, prompt=PROMPTS), 2)
    for row, prompt in enumerate(PROMPTS):
        alone = draw(pipe, Steering(EDITS).inputs(embedded, pipe, prompt=prompt), 1)
        np.testing.assert_allclose(together[row], alone[0], atol=1e-3)
    late = Steering(EDITS, begin=0.5)
    with late.scheduled(embedded, pipe, prompt=PROMPTS):
        half = draw(pipe, late.inputs(embedded, pipe, prompt=PROMPTS), 2)
    plain = draw(pipe, {"prompt": PROMPTS}, 2)
    assert np.abs(half - plain).max() > 1e-4 and np.abs(half - together).max() > 1e-4
    never = Steering(EDITS, begin=0.9, end=0.95)
    with never.scheduled(embedded, pipe, prompt=PROMPTS):
        found = draw(pipe, never.inputs(embedded, pipe, prompt=PROMPTS), 2)
    np.testing.assert_allclose(found, plain, atol=1e-3)
    inputs = Steering(EDITS).inputs(embedded, pipe, prompt=PROMPTS, negative_prompt="a car")
    assert np.abs(draw(pipe, inputs, 2) - together).max() > 1e-4


def test_the_pseudo_inverse_of_equal_projections_is_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    found = pseudo_inverse(weight)
    torch.testing.assert_close(found @ weight, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(pseudo_inverse(weight.bfloat16()), found, atol=0.05, rtol=0.05)
    monkeypatch.setattr(torch.linalg, "pinv", None)
    for equal in (weight.clone().requires_grad_(), weight.T.contiguous().T):
        assert pseudo_inverse(equal) is found


def test_another_text_encoder_and_images_get_words(pipe: Any, embedded: FeatureSpace) -> None:
    with pytest.raises(UserError, match="reads embeddings of another encoder"):
        Steering(EDITS).inputs(FeatureSpace.load("embedded", device="cpu"), pipe, prompt="cat")
    with pytest.raises(UserError, match="takes texts, not images"):
        Steering(EDITS).inputs(embedded, pipe, image=Image.new("RGB", (8, 8)))
    small = pipelines.stable_diffusion()
    small.text_encoder.config.hidden_size = 32
    with pytest.raises(UserError, match="ViT-L-14/openai"):
        Steering(EDITS).inputs(embedded, small, prompt="cat")


def test_a_pipeline_that_never_guides_takes_prompts_too(embedded: FeatureSpace) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = pipelines.stable_diffusion_of_prompts().components
        width = parts["text_encoder"].config.hidden_size
        unet = pipelines.unet(cross_attention_dim=width, time_cond_proj_dim=8)
    parts |= {"unet": unet, "scheduler": diffusers.LCMScheduler()}
    pipe = diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    none, some = (Steering(edits).inputs(embedded, pipe, prompt=PROMPTS) for edits in ((), EDITS))
    own = draw(pipe, {"prompt": PROMPTS}, 2)
    np.testing.assert_allclose(draw(pipe, none, 2), own, atol=1e-4)
    assert np.abs(draw(pipe, some, 2) - own).max() > 1e-4


def of_class(name: str, **parts: Any) -> Any:
    """A pipeline of a class of diffusers that has these parts alone."""
    pipe = object.__new__(getattr(diffusers, name))
    vars(pipe).update(parts)
    return pipe


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("StableUnCLIPPipeline", {"prior": object()}),  # draws from embeddings of its own
        ("I2VGenXLPipeline", {}),  # reads the states before the last
        ("StableDiffusionLatentUpscalePipeline", {}),  # likewise, and has one encoder
        ("CycleDiffusionPipeline", {}),
        ("KandinskyPipeline", {}),
    ],
)
def test_pipelines_that_read_a_prompt_otherwise_are_refused(
    name: str, more: dict[str, Any], pipe: Any, embedded: FeatureSpace
) -> None:
    other = of_class(name, unet=pipe.unet, text_encoder=pipe.text_encoder, **more)
    with pytest.raises(UserError, match=f"{name}: no image or text embedding of a CLIP enters it"):
        Steering(EDITS).inputs(embedded, other, prompt="a woman")


def test_encoders_beside_others_are_not_taken_for_stable_diffusion_3s(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    parts = pipes["sd3-pooled"].components
    pipe = of_class("HiDreamImagePipeline", **parts, text_encoder_4=object())
    with pytest.raises(UserError, match="no image or text embedding of a CLIP enters it"):
        Steering(EDITS).inputs(space, pipe, prompt="a cat")


class AsksForAPrompt(diffusers.StableDiffusionPipeline):
    def __call__(self, prompt: Any, **named: Any) -> Any:
        return super().__call__(prompt, **named)


class AsksForAPromptXL(diffusers.StableDiffusionXLPipeline):
    def __call__(self, prompt: Any, **named: Any) -> Any:
        return super().__call__(prompt, **named)


def test_calls_that_ask_for_a_prompt_are_given_none(
    pipe: Any, pipes: dict[str, Any], embedded: FeatureSpace, space: FeatureSpace
) -> None:
    own = AsksForAPrompt(**pipe.components, requires_safety_checker=False)
    own_xl = AsksForAPromptXL(**pipes["sdxl-pooled"].components)
    for one, its in ((own, embedded), (own_xl, space)):
        one.set_progress_bar_config(disable=True)
        inputs = Steering().inputs(its, one, prompt="a woman")
        ours = draw(one, inputs, 1)
        np.testing.assert_allclose(ours, draw(one, {"prompt": "a woman"}, 1), atol=1e-4)


@pytest.mark.parametrize("prompt", [None, [], [None]])
def test_no_prompt_to_edit_is_said(prompt: Any, pipe: Any, embedded: FeatureSpace) -> None:
    with pytest.raises(UserError, match="give the text to edit"):
        Steering(EDITS).inputs(embedded, pipe, prompt=prompt)


def test_a_schedule_for_another_prompt_is_refused(pipe: Any, embedded: FeatureSpace) -> None:
    late = Steering(EDITS, begin=0.5)
    inputs = late.inputs(embedded, pipe, prompt=PROMPTS)
    with (
        pytest.raises(UserError, match="called with other embeddings"),
        late.scheduled(embedded, pipe, prompt=[PROMPTS[0], "a car"]),
    ):
        draw(pipe, inputs, 2)


def changed(spread: float) -> Any:
    """A pipeline with other weights where LoRAs and DreamBooth change them."""
    pipe = pipelines.stable_diffusion_of_prompts()
    generator = torch.Generator().manual_seed(0)
    for name, weight in pipe.text_encoder.named_parameters():
        if "_proj" in name:
            weight.data += spread * torch.randn(weight.shape, generator=generator)
    return pipe


@pytest.mark.parametrize("spread", [0.02, 0.03])
def test_a_text_encoder_that_was_trained_on_is_warned_of(
    spread: float, embedded: FeatureSpace
) -> None:
    pipe = changed(spread)
    with pytest.warns(UserWarning, match="not quite embedded-ssl.*trained on"):
        inputs = Steering(EDITS).inputs(embedded, pipe, prompt="a woman")
    assert (inputs["prompt_embeds"] != pipe.encode_prompt("a woman", "cpu", 1, False)[0]).any()


@pytest.mark.parametrize("spread", [0.05, 0.08])
def test_a_text_encoder_that_is_hardly_the_spaces_is_refused(
    spread: float, embedded: FeatureSpace
) -> None:
    with pytest.raises(UserError, match="reads embeddings of another encoder"):
        Steering(EDITS).inputs(embedded, changed(spread), prompt="a woman")


@pytest.mark.parametrize(("last_layer", "least"), [(False, 0.97), (True, 0.6)])
def test_sdxls_moved_states_go_on_to_the_steered_embedding(
    last_layer: bool, least: float, space: FeatureSpace
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = pipelines.stable_diffusion_xl()
    if not last_layer:  # it passes on what it is given; of 32 dimensions the norm takes two
        layer = pipe.text_encoder_2.text_model.encoder.layers[-1]
        for part in (layer.self_attn.out_proj, layer.mlp.fc2):
            part.weight.data.zero_()
            part.bias.data.zero_()
    adapter = adapter_for(pipe, space)
    encoder = pipe.text_encoder_2
    width = encoder.config.hidden_size
    plain = adapter.embed_prompt(PROMPTS)
    steered = Steering((Edit(2, 0.03), Edit(5, -0.02))).apply(space, plain, "text").embedding
    call = Call(PROMPTS)
    before = adapter.inputs(plain, plain, call)["prompt_embeds"]
    after = adapter.inputs(steered, plain, call)["prompt_embeds"]
    torch.testing.assert_close(after[..., :-width], before[..., :-width])
    tokens = pipe.tokenizer_2(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    for row, ids in enumerate(tokens.tolist()):
        end = ids.index(pipe.tokenizer_2.eos_token_id)
        torch.testing.assert_close(after[row, :end], before[row, :end])
        assert (after[row, end:, -width:] != before[row, end:, -width:]).any(1).all()

    def through(states: torch.Tensor) -> torch.Tensor:
        """What the rest of the text encoder makes of states before its last layer."""
        layer = encoder.text_model.encoder.layers[-1]
        own = states[..., -width:]
        handle = layer.register_forward_pre_hook(lambda _, given: (own, *given[1:]))
        with torch.no_grad():
            found = encoder(tokens).text_embeds
        handle.remove()
        return found

    torch.testing.assert_close(through(before), plain, atol=1e-4, rtol=1e-4)
    moved, wanted = through(after) - plain, steered - plain
    assert F.cosine_similarity(moved, wanted).min() > least
    assert (moved.norm(dim=1) / wanted.norm(dim=1) - 1).abs().max() < 1.5 - least


@pytest.mark.parametrize("vectors", [1, 3])
def test_textual_inversions_are_read_as_the_pipeline_reads_them(
    vectors: int, embedded: FeatureSpace
) -> None:
    pipe = pipelines.stable_diffusion_of_prompts()
    pipe.set_progress_bar_config(disable=True)
    width = pipe.text_encoder.config.hidden_size
    learnt = torch.randn(vectors, width, generator=torch.Generator().manual_seed(0))
    pipe.load_textual_inversion({"<style>": learnt}, token="<style>")
    prompts = ["a woman in <style>", "man"]
    ours = Steering().inputs(embedded, pipe, prompt=prompts)
    expected = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
    torch.testing.assert_close(ours["prompt_embeds"], expected)
    edited = Steering(EDITS).inputs(embedded, pipe, prompt=prompts)["prompt_embeds"]
    words = len(pipe.tokenizer("a woman in").input_ids) - 1  # less the end
    assert (edited != expected)[0].any(1).tolist().index(True) == words + vectors


def test_sdxls_textual_inversions_lie_before_what_is_moved(space: FeatureSpace) -> None:
    pipe = pipelines.stable_diffusion_xl()
    for encoder, tokenizer in (
        (pipe.text_encoder, pipe.tokenizer),
        (pipe.text_encoder_2, pipe.tokenizer_2),
    ):
        pipe.load_textual_inversion(
            {"<style>": torch.randn(3, encoder.config.hidden_size)},
            token="<style>",
            text_encoder=encoder,
            tokenizer=tokenizer,
        )
    prompt = "cat <style>"
    before, after = (
        Steering(edits).inputs(space, pipe, prompt=prompt)["prompt_embeds"][0]
        for edits in ((), (Edit(2, 3.0),))
    )
    words = len(pipe.tokenizer_2("cat").input_ids) - 1
    assert (before != after).any(1).tolist().index(True) == words + 3


def test_sdxls_schedule_moves_tokens_and_pooled_prompt_together(
    pipes: dict[str, Any], space: FeatureSpace
) -> None:
    pipe, edits = pipes["sdxl-pooled"], (Edit(2, 3.0),)
    never, negative = Steering(edits, begin=0.9, end=0.95), ["a bird"] * 2
    with never.scheduled(space, pipe, prompt=PROMPTS):
        inputs = never.inputs(space, pipe, prompt=PROMPTS, negative_prompt=negative)
        found = draw(pipe, inputs, 2)
    plain = draw(pipe, {"prompt": PROMPTS, "negative_prompt": negative}, 2)
    np.testing.assert_allclose(found, plain, atol=2e-3)
    assert np.abs(draw(pipe, inputs, 2) - plain).max() > 1e-2
