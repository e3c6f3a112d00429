"""dictionary_learning's nested loss of given weights on a batch, printed as JSON.

    PYTHON -m benchmarks.matryoshka_loss FILE K

Run by `benchmarks.parity` in an environment that holds dictionary_learning.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file

from features.dictionary.matryoshka import PREFIX_SHARES


def main() -> None:
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    state = load_file(sys.argv[1])
    features, dim = state["decoder"].shape
    ends = [round(share * features) for share in PREFIX_SHARES] + [features]
    sizes = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    trainer = MatryoshkaBatchTopKTrainer(
        steps=10_000,
        activation_dim=dim,
        dict_size=features,
        k=int(sys.argv[2]),
        layer=0,
        lm_name="none",
        group_fractions=[size / features for size in sizes],
        group_weights=[1.0] * len(sizes),
        device="cpu",
    )
    trainer.ae.W_enc.data.copy_(state["encoder"].T)
    trainer.ae.W_dec.data.copy_(state["decoder"])
    trainer.ae.b_enc.data.zero_()
    trainer.ae.b_dec.data.zero_()
    with torch.no_grad():
        found = trainer.loss(state["x"], step=0, logging=True)
    print(json.dumps(found.losses["l2_loss"]))


if __name__ == "__main__":
    main()
