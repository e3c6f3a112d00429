"""Writes small random autoencoders with the libraries themselves, and what they compute of real
embeddings, as the test of their conversion has them.

    python -m tests.autoencoders.record saelens sparsify dictionary_learning overcomplete saev

Run in an environment that has the libraries named.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
FEATURES, K = 40, 5
EMBEDDINGS = "embeddings.safetensors"


def embeddings() -> torch.Tensor:
    return load_file(HERE / EMBEDDINGS)["x"]  # [samples, dim], unit rows


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """With biases, rows of all lengths, and thresholds that some activations exceed."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            scale = 0.05 if "bias" in name or name.startswith("b_") else 0.2
            tensor.copy_(tensor + scale * noise if tensor.ndim else tensor)
    return model.eval().requires_grad_(False)


def keep(name: str, activations: torch.Tensor, reconstruction: torch.Tensor) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    kept = {"activations": activations.contiguous(), "reconstruction": reconstruction.contiguous()}
    save_file(kept, folder / "computed.safetensors")


def saelens() -> None:
    from sae_lens.saes import (
        gated_sae,
        jumprelu_sae,
        standard_sae,
        topk_sae,
    )

    x = embeddings()
    size = {"d_in": x.shape[1], "d_sae": FEATURES}
    made = {
        "standard": (standard_sae.StandardSAE, standard_sae.StandardSAEConfig(**size)),
        "standard-plain-input": (
            standard_sae.StandardSAE,
            standard_sae.StandardSAEConfig(**size, apply_b_dec_to_input=False),
        ),
        "standard-rescaled": (
            standard_sae.StandardSAE,
            standard_sae.StandardSAEConfig(**size, normalize_activations="constant_norm_rescale"),
        ),
        "topk": (topk_sae.TopKSAE, topk_sae.TopKSAEConfig(**size, k=K)),
        "topk-by-norm": (
            topk_sae.TopKSAE,
            topk_sae.TopKSAEConfig(**size, k=K, rescale_acts_by_decoder_norm=True),
        ),
        "jumprelu": (jumprelu_sae.JumpReLUSAE, jumprelu_sae.JumpReLUSAEConfig(**size)),
        "gated": (gated_sae.GatedSAE, gated_sae.GatedSAEConfig(**size)),
    }
    for name, (cls, config) in made.items():
        sae = randomised(cls(config))
        sae.save_model(HERE / f"saelens-{name}")
        activations = sae.encode(x)
        keep(f"saelens-{name}", activations, sae.decode(activations))


def sparsify() -> None:
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify.sparse_coder import SparseCoder, SparseCoderConfig

    x = embeddings()
    sae = randomised(SparseCoder(x.shape[1], SparseCoderConfig(num_latents=FEATURES, k=K)))
    sae.save_to_disk(HERE / "sparsify")
    values, indices, _ = sae.encode(x)
    dense = torch.zeros(len(x), FEATURES).scatter(1, indices, values)
    keep("sparsify", dense, sae.decode(values, indices))


def dictionary_learning() -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    x = embeddings()
    size = (x.shape[1], FEATURES)
    nested = matryoshka_batch_top_k.MatryoshkaBatchTopKSAE
    made = {
        "AutoEncoder": dictionary.AutoEncoder(*size),
        "AutoEncoderNew": dictionary.AutoEncoderNew(*size),
        "GatedAutoEncoder": dictionary.GatedAutoEncoder(*size),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(*size),
        "AutoEncoderTopK": top_k.AutoEncoderTopK(*size, K),
        "BatchTopKSAE": batch_top_k.BatchTopKSAE(*size, K),
        "MatryoshkaBatchTopKSAE": nested(*size, K, [FEATURES // 4, FEATURES - FEATURES // 4]),
    }
    for name, sae in made.items():
        folder = HERE / f"dictionary_learning-{name}"
        folder.mkdir(exist_ok=True)
        if "Batch" in name:
            sae.threshold.fill_(0.3)
        torch.save(randomised(sae).state_dict(), folder / "ae.pt")
        config = {"trainer": {"dict_class": name, "k": K, "dict_size": FEATURES}}
        (folder / "config.json").write_text(json.dumps(config))
        loaded = type(sae).from_pretrained(folder / "ae.pt")
        activations = loaded.encode(x)
        keep(folder.name, activations, loaded.decode(activations))


def overcomplete() -> None:
    from overcomplete.sae import JumpSAE, TopKSAE

    x = embeddings()
    made: dict[str, Callable[[], Any]] = {
        "topk": lambda: TopKSAE(x.shape[1], FEATURES, top_k=K),
        "topk-batch-norm": lambda: TopKSAE(
            x.shape[1], FEATURES, top_k=K, encoder_module="mlp_bn_1"
        ),
        "topk-tied": lambda: TopKSAE(x.shape[1], FEATURES, top_k=K).tied(bias=True),
        "jump": lambda: JumpSAE(x.shape[1], FEATURES),
    }
    for name, make in made.items():
        folder = HERE / f"overcomplete-{name}"
        folder.mkdir(exist_ok=True)
        sae = make()
        for _ in range(3):
            sae.train()(x)  # running statistics of batch norms
        randomised(sae)
        sae.train().get_dictionary()
        sae.eval()
        torch.save(sae.state_dict(), folder / "sae.pt")
        _, activations = sae.encode(x)
        keep(folder.name, activations, sae.decode(activations))


def saev() -> None:
    from saev import config, nn

    x = embeddings()
    settings = config.SparseAutoencoder(d_vit=x.shape[1], exp_factor=1)
    sae = randomised(nn.SparseAutoencoder(settings))
    nn.dump(str(HERE / "saev" / "sae.pt"), sae)
    reconstruction, activations, _ = sae(x)
    keep("saev", activations, reconstruction)


if __name__ == "__main__":
    for library in sys.argv[1:]:
        globals()[library]()
