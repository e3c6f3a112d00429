"""The FeatureSpaces of photographs and of garments.

`photos`: a dictionary of all of them, scored on those that the encoder's
heads never saw, named and illustrated by these and by those that the heads were trained on.

    python -m features.embedded.build_photos_space --work runs/spaces/photos

Features are named by words of alt texts, but for English function words: labels, licences and
credits name no feature, since what a picture shows is to. Garments, whose captions are made from
their labels, name none either.

`garments`: a dictionary of the garments of two thirds of the photographers, scored on these, named
by words of their captions. The others' garments are left for testing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from features.dictionary import Dictionary, TrainConfig, fit_dictionary
from features.embedded import SPACES
from features.embedded.photos import PhotoPairs
from features.encoders.load import load_encoder
from features.scores.terms import vocabulary
from features.space.illustrate import illustrate
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.extract import extract
from features.store.store import SAMPLE_BATCH, ActivationStore

DICTIONARY = TrainConfig(kind="topk", features=256, k=8)
OF_GARMENTS = TrainConfig(kind="topk", features=256, k=16)
GARMENTS_SEEN = "garments-train"
SHOWN = "train+scored"
"""What features are named and illustrated by."""


def build(work: Path, out: Path) -> None:
    """Write the FeatureSpace `out`; stores and the dictionary are kept in `work`."""
    everything = extract(PhotoPairs(), load_encoder("photos", device="cpu"), work / "all")
    dictionary = fit_dictionary(everything, DICTIONARY, work / "dictionary", device="cpu")
    scored_and_shown(dictionary, work).save(out)


def build_garments(work: Path, out: Path) -> None:
    """Write the FeatureSpace of garments `out`; the store and the dictionary are kept in `work`."""
    source = PhotoPairs(GARMENTS_SEEN)
    store = extract(source, load_encoder("photos", device="cpu"), work / GARMENTS_SEEN)
    dictionary = fit_dictionary(store, OF_GARMENTS, work / "of-garments", device="cpu")
    score(store, dictionary, source=source, terms=words_of_captions(store)).save(out)


def scored_and_shown(dictionary: Dictionary, work: Path) -> FeatureSpace:
    """The FeatureSpace of a dictionary of the photographs; stores are kept in `work`."""
    encoder = load_encoder("photos", device="cpu")
    scored, shown = PhotoPairs("scored"), PhotoPairs(SHOWN)
    store = extract(scored, encoder, work / "scored")
    shown_store = extract(shown, encoder, work / SHOWN)
    space = score(store, dictionary, source=scored, terms=())
    return illustrate(space, shown_store, shown, terms=words_of_captions(shown_store))


def words_of_captions(store: ActivationStore) -> list[str]:
    """The words of a store's captions that say something, without its attributes."""
    terms = vocabulary(store.sample_batches(SAMPLE_BATCH))
    return [term for term in terms if ":" not in term and term not in ENGLISH_STOP_WORDS]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SPACES, help="folder of both")
    arguments = parser.parse_args()
    build(arguments.work, arguments.out / "photos")
    build_garments(arguments.work, arguments.out / "garments")
