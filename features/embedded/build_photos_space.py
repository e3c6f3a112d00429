"""The FeatureSpace of photographs: a dictionary of all of them, scored on those that the encoder's
heads never saw, and named by words of their alt texts.

    python -m features.embedded.build_photos_space --work runs/spaces/photos

Labels, licences and credits name no feature: what a picture shows is to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from features.dictionary import TrainConfig, fit_dictionary
from features.embedded import SPACES
from features.embedded.photos import PhotoPairs
from features.encoders.load import load_encoder
from features.scores.naming import vocabulary
from features.space.score import score
from features.store.extract import extract
from features.store.store import SAMPLE_BATCH, ActivationStore

DICTIONARY = TrainConfig(kind="topk", features=256, k=8)


def build(work: Path, out: Path) -> None:
    """Write the FeatureSpace `out`; stores and the dictionary are kept in `work`."""
    encoder = load_encoder("photos", device="cpu")
    scored = PhotoPairs("scored")
    everything = extract(PhotoPairs(), encoder, work / "all")
    store = extract(scored, encoder, work / "scored")
    dictionary = fit_dictionary(everything, DICTIONARY, work / "dictionary", device="cpu")
    score(store, dictionary, source=scored, terms=words_of_captions(store)).save(out)


def words_of_captions(store: ActivationStore) -> list[str]:
    """The vocabulary of a store without its attributes."""
    terms = vocabulary(store.sample_batches(SAMPLE_BATCH))
    return [term for term in terms if ":" not in term]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SPACES / "photos")
    arguments = parser.parse_args()
    build(arguments.work, arguments.out)
