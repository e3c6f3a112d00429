"""What bf16 candidates miss on real embeddings, and what it costs in FVU.

    python -m benchmarks.selection --work runs/selection --out runs/selection.json

On the embeddings of the embedded encoders: the share of the true k largest, of those that are
active, that the candidates hold after a training; and held-out FVU of trainings that select by bf16
and exactly, over seeds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from benchmarks.common import Result, mean_row, median_row, options, run_sections
from features.dictionary import Dictionary, TopKDictionary, TrainConfig, fit_dictionary
from features.dictionary.selection import candidate_places, exact_places
from features.encoders.load import load_encoder
from features.modality import MODALITIES
from features.pairs.open import open_pairs
from features.store.extract import extract
from features.store.store import ActivationStore

ENCODERS = {"embedded": "embedded", "embedded-ssl": "embedded", "photos": "photos"}
"""Encoders and their pairs."""
FEATURES, K, STEPS, SEEDS = 2048, 32, 600, 3
BATCH = 1024


def selection_rows(encoder: str, work: Path, seed: int) -> list[Result]:
    """Recall after one training and FVU of several, on an encoder's embeddings."""
    model = load_encoder(encoder, device="cpu")
    store = extract(open_pairs(ENCODERS[encoder]), model, work / encoder)
    rows: list[Result] = []
    fvu: dict[str, list[float]] = {}
    for selection in ("bf16", "exact"):
        fvu[selection] = []
        for number in range(SEEDS):
            config = TrainConfig(
                features=FEATURES, k=K, steps=STEPS, selection=selection, seed=seed + number
            )
            out = work / f"{encoder}-{selection}-{number}"
            dictionary = fit_dictionary(store, config, out, progress=False)
            assert dictionary.config.held_out is not None
            found = dictionary.config.held_out["within"]["fvu"]
            assert found is not None
            fvu[selection].append(found)
        rows.append(median_row(f"fvu/{encoder}/{selection}", fvu[selection], "FVU"))
    return rows + recall_rows(encoder, dictionary, store, seed)


@torch.no_grad()
def recall_rows(
    name: str, dictionary: Dictionary, store: ActivationStore, seed: int
) -> list[Result]:
    """By modality: the mean over samples of the share that is found."""
    assert isinstance(dictionary, TopKDictionary)
    layer = (dictionary.encoder, dictionary.encoder_bias)
    rows = []
    for side, modality in enumerate(MODALITIES):
        shares = []
        for pair in store.batches(BATCH):
            x = pair[side] - dictionary.mean(modality)
            values, true = exact_places(x, *layer, K)
            _, found = candidate_places(x, *layer, K)
            hit = (true.unsqueeze(2) == found.unsqueeze(1)).any(2) & (values > 0)  # [n, k]
            active = (values > 0).sum(1)  # [n]
            shares.append((hit.sum(1) / active)[active > 0])
        rows.append(mean_row(f"recall/{name}/{modality}", torch.cat(shares).numpy(), "share", seed))
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of stores and trainings")
    arguments = parser.parse_args()
    sections = [
        partial(selection_rows, encoder, arguments.work, arguments.seed) for encoder in ENCODERS
    ]
    run_sections(sections, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
