"""Train a small open_clip encoder on a few thousand pairs: the recipe of the embedded encoders.

    mms train-encoder --pairs embedded:train --out features/embedded/encoders/embedded
    mms train-encoder --pairs embedded:train --ssl --out features/embedded/encoders/embedded-ssl

The model is an open_clip `CLIP` with a small ResNet for images and a small transformer for
texts. The loss is contrastive (Radford et al. 2021). With `ssl` comes self-supervision of both
modalities: SimCLR between two views of an image, as in SLIP (Mu et al. 2021), and the prediction
of masked words, as in DeCLIP (Li et al. 2022). Words are predicted from the direction of the pooled
text embedding alone, since that is what the dictionary reads. Half of each batch holds whole groups
of like pairs (the variants of one role), so that the contrast asks for fine distinctions.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from features.checkpoint import load_checkpoint, save_checkpoint
from features.distributed import mixed_precision, resolve_device
from features.embedded.world import REGISTERS, EmbeddedPairs, PlantedFactors, caption, render
from features.errors import UserError
from features.files import write_json, write_tensors
from features.pairs.base import Pair, PairSource

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CHECKPOINT_STEPS = 100
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
START_OF_TEXT = "<|startoftext|>"


@dataclass(frozen=True)
class EncoderTraining:
    """What a small encoder is made of and how it is trained."""

    ssl: bool = False
    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warmup_steps: int = 60
    average_decay: float = 0.99
    group_by: str = "role"
    mask_share: float = 0.25
    image_ssl_weight: float = 0.5
    text_ssl_weight: float = 0.5
    seed: int = 0
    dim: int = 128
    image_size: int = 64
    vision_layers: tuple[int, ...] = (1, 1, 1, 1)
    vision_width: int = 16
    text_width: int = 128
    text_layers: int = 2
    context_length: int = 32
    vocabulary: int = 2500


class TrainingPairs:
    """All drawings in memory as arrays (16 kB a pair at 64 px), captions and factors drawn anew.

    Pairs of the embedded world get new planted factors every time they are drawn; other pairs
    keep their image, and one of their captions is drawn.
    """

    def __init__(self, source: PairSource, image_size: int, group_by: str) -> None:
        self.image_size = image_size
        self.images: list[Image.Image] = []
        self.captions: list[tuple[str, ...]] = []
        self.planted = isinstance(source, EmbeddedPairs)
        groups: dict[str, list[int]] = defaultdict(list)
        for image, captions, group in self._records(source, group_by):
            if group is not None:
                groups[group].append(len(self.images))
            self.images.append(image)
            self.captions.append(captions)
        self.groups = [members for members in groups.values() if len(members) > 1]

    def _records(
        self, source: PairSource, group_by: str
    ) -> Iterator[tuple[Image.Image, tuple[str, ...], str | None]]:
        if isinstance(source, EmbeddedPairs):
            for index, row in enumerate(source.rows):
                yield source.drawing(index), (row["text"],), row.get(group_by)
            return
        size = (self.image_size, self.image_size)
        for part in source.parts():
            for pair in source.read(part):
                if isinstance(pair, Pair):
                    image = pair.image.resize(size, Image.Resampling.BICUBIC)
                    yield image, pair.captions, pair.attributes.get(group_by)

    def __len__(self) -> int:
        return len(self.images)

    def indices(self, batch_size: int, rng: random.Random) -> list[int]:
        """Draw a batch without repetition: half whole groups of like pairs, half at random."""
        chosen: dict[int, None] = {}
        for group in rng.sample(self.groups, len(self.groups)):
            if len(chosen) + len(group) > batch_size // 2:
                break
            chosen.update(dict.fromkeys(group))
        for index in rng.sample(range(len(self)), min(len(self), 2 * batch_size)):
            if len(chosen) >= min(batch_size, len(self)):
                break
            chosen[index] = None
        return list(chosen)

    def draw(self, batch_size: int, rng: random.Random) -> tuple[Tensor, list[str]]:
        """Draw a batch: pixels in [0, 1] `[batch, 3, size, size]` and captions."""
        pixels, captions = [], []
        for index in self.indices(batch_size, rng):
            image, text = self.images[index], rng.choice(self.captions[index])
            if self.planted:
                factors = PlantedFactors.draw(rng)
                image, text = render(image, factors), caption(text, factors)
            pixels.append(np.asarray(image))
            captions.append(text)
        stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # [batch, 3, size, size]
        return stacked.float() / 255, captions

    def corpus(self) -> list[str]:
        """Texts for the tokenizer's training."""
        texts = [text for captions in self.captions for text in captions]
        if self.planted:
            texts += [w.format("") for wordings in REGISTERS.values() for w in wordings] * 20
        return texts


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of each image: shift, scale, light, noise and a hole.

    Colours move little, since skin tones differ by little.

    Args:
        pixels: `[n, 3, size, size]` in [0, 1].
    """
    n, _, size, _ = pixels.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(shape, generator=generator) * (high - low) + low
        return draw.to(pixels.device)

    zoom = uniform(0.88, 1.08, n)
    affine = torch.zeros(n, 2, 3, device=pixels.device)
    affine[:, 0, 0] = affine[:, 1, 1] = zoom
    affine[:, :, 2] = uniform(-0.08, 0.08, n, 2)
    grid = F.affine_grid(affine, [n, 3, size, size], align_corners=False)
    view = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    view = view * uniform(0.94, 1.06, n, 3, 1, 1) + uniform(-0.03, 0.03, n, 1, 1, 1)
    view = view + 0.02 * torch.randn(view.shape, generator=generator).to(pixels.device)
    axis = torch.arange(size, device=pixels.device)
    corner = uniform(-0.2, 0.95, n, 2) * size
    side = uniform(0.1, 0.25, n, 1) * size
    rows = (axis >= corner[:, :1]) & (axis < corner[:, :1] + side)  # [n, size]
    columns = (axis >= corner[:, 1:]) & (axis < corner[:, 1:] + side)  # [n, size]
    hole = (rows[:, None, :, None] & columns[:, None, None, :]).float()
    return (view * (1 - hole) + 0.5 * hole).clamp(0, 1)


def train_tokenizer(texts: list[str], vocabulary: int) -> CLIPTokenizer:
    """A `transformers.CLIPTokenizer` whose byte-level BPE is learned from `texts`.

    The end-of-text token has the highest id, as open_clip's text pooling asks.
    """
    from tokenizers import pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    learner = CLIPTokenizer().backend_tokenizer
    learner.model = BPE(end_of_word_suffix="</w>")
    learner.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    pieces += [f"{c}</w>" for c in pre_tokenizers.ByteLevel.alphabet()]
    pieces = [*dict.fromkeys(pieces), START_OF_TEXT, END_OF_TEXT]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=merges,
    )


class SelfSupervision(nn.Module):
    """Heads on the pooled embeddings: SimCLR for images, masked words for texts.

    A word's score is the cosine of its vector with the text's embedding over `word_temperature`:
    what a text says must take up room in the embedding's direction to be predicted.
    """

    temperature = 0.2
    word_temperature = 0.05

    def __init__(self, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.image_head = nn.Sequential(nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, 128))
        self.words = nn.Parameter(torch.randn(vocabulary, dim))

    def image_loss(self, first: Tensor, second: Tensor) -> Tensor:
        """NT-Xent (Chen et al. 2020) between two views' embeddings, each `[n, dim]`."""
        views = F.normalize(self.image_head(torch.cat([first, second])), dim=-1)  # [2n, 128]
        logits = views @ views.T / self.temperature  # [2n, 2n]
        logits = logits.masked_fill(
            torch.eye(len(views), dtype=torch.bool, device=views.device), -1e9
        )
        n = len(first)
        partner = torch.arange(2 * n, device=views.device).roll(n)
        return F.cross_entropy(logits, partner)

    def text_loss(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """Cross-entropy of the words of `tokens` `[n, context]` given the pooled embedding of
        their masked version `[n, dim]`, each caption counting once."""
        cosine = F.normalize(embedding, dim=-1) @ F.normalize(self.words, dim=-1).T
        log_probabilities = (cosine / self.word_temperature).log_softmax(dim=-1)  # [n, vocabulary]
        ends = tokens >= log_probabilities.shape[1] - 2
        likelihood = log_probabilities.gather(1, tokens).masked_fill(ends, 0.0)  # [n, context]
        return -(likelihood.sum(1) / (~ends).sum(1).clamp(min=1)).mean()


def mask_words(tokens: Tensor, share: float, mask: int, generator: torch.Generator) -> Tensor:
    """Replace a share of the words by `mask`; start, end and padding stay."""
    words = tokens < mask
    hit = torch.rand(tokens.shape, generator=generator) < share
    return tokens.masked_fill(words & hit, mask)


def open_clip_config(training: EncoderTraining, vocabulary: int) -> dict:
    """The content of `open_clip_config.json`."""
    return {
        "model_cfg": {
            "embed_dim": training.dim,
            "vision_cfg": {
                "image_size": training.image_size,
                "layers": list(training.vision_layers),
                "width": training.vision_width,
            },
            "text_cfg": {
                "context_length": training.context_length,
                "vocab_size": vocabulary,
                "hf_tokenizer_name": "tokenizer",
                "width": training.text_width,
                "heads": training.text_width // 32,
                "layers": training.text_layers,
            },
        },
        "preprocess_cfg": {
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def learning_rate(step: int, training: EncoderTraining) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def save_encoder(
    folder: Path, model: nn.Module, config: dict, tokenizer: CLIPTokenizer, record: dict
) -> None:
    """Write an open_clip `local-dir:` folder: config, half-precision weights, tokenizer, record."""
    weights = {
        key: value.half() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
        if key != "attn_mask"
    }
    tokenizer.save_pretrained(folder)
    write_json(folder / "training.json", record)
    write_json(folder / "open_clip_config.json", config)
    write_tensors(folder / "open_clip_model.safetensors", weights)


def train_encoder(
    source: PairSource,
    out: Path,
    training: EncoderTraining,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Path:
    """Train an encoder on `source` and save it to the folder `out`.

    A run that was cut off goes on from its last checkpoint (`out/checkpoint.safetensors`, every
    100 steps, removed at the end).

    Raises:
        UserError: there are fewer than two readable pairs, or `out` holds an unfinished training
            with other settings or pairs.
    """
    import open_clip
    from rich.progress import track

    device = resolve_device(device)
    pairs = TrainingPairs(source, training.image_size, training.group_by)
    if len(pairs) < 2:
        raise UserError(f"{source.name}: {len(pairs)} readable pairs; training needs at least two")
    tokenizer = train_tokenizer(pairs.corpus(), training.vocabulary)
    config = open_clip_config(training, len(tokenizer))
    torch_generator = torch.Generator()
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        model = open_clip.CLIP(**config["model_cfg"]).to(device)
        ssl = SelfSupervision(training.dim, len(tokenizer)).to(device)
    model = model.to(memory_format=torch.channels_last)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(training.average_decay), use_buffers=True
    )
    parameters = [*model.parameters(), *ssl.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        betas=(0.9, 0.98),
    )
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    settings = json.dumps([dataclasses.asdict(training), source.fingerprint()])
    modules = {"model": model, "ssl": ssl, "average": average}
    first = load_checkpoint(checkpoint, modules, optimizer, settings)
    contrast = open_clip.ClipLoss()
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(
            texts,
            return_tensors="pt",
            max_length=training.context_length,
            padding="max_length",
            truncation=True,
        ).input_ids

    def image_embedding() -> Tensor:
        view = (augment(pixels, torch_generator) - mean) / std
        return encode(model.encode_image, view.contiguous(memory_format=torch.channels_last))

    def encode(encoder: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with mixed_precision(device):
            return encoder(inputs).float()  # [batch, dim]

    model.train()
    for step in track(
        range(first, training.steps),
        description="training the encoder",
        total=training.steps,
        completed=first,
        disable=not progress,
    ):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        torch_generator.manual_seed(training.seed * 1_000_003 + step)
        pixels, texts = pairs.draw(training.batch_size, random.Random(f"{training.seed}/{step}"))
        pixels = pixels.to(device)
        tokens = tokenize(texts)
        image = image_embedding()
        text = F.normalize(encode(model.encode_text, tokens.to(device)), dim=-1)
        scale = model.logit_scale.exp()
        loss = contrast(F.normalize(image, dim=-1), text, scale)
        if training.ssl:
            second = image_embedding()
            masked = mask_words(
                tokens, training.mask_share, len(tokenizer) - 2, torch_generator
            ).to(device)
            loss = (loss + contrast(F.normalize(second, dim=-1), text, scale)) / 2
            loss = loss + training.image_ssl_weight * ssl.image_loss(image, second)
            loss = loss + training.text_ssl_weight * ssl.text_loss(
                encode(model.encode_text, masked), tokens.to(device)
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        average.update_parameters(model)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            save_checkpoint(checkpoint, modules, optimizer, step + 1, settings)
            log.info("step %d, loss %.3f", step + 1, loss.item())
    record = {
        "schema": 1,
        "training": dataclasses.asdict(training),
        "pairs": source.name,
        "pairs_fingerprint": source.fingerprint(),
        "count": len(pairs),
    }
    save_encoder(out, average.module, config, tokenizer, record)
    checkpoint.unlink(missing_ok=True)
    return out
