"""Scores the shipped FeatureSpaces again, with the dictionaries that they hold.

    python -m features.embedded.score_spaces --work runs/spaces

Wanted where scores or formats changed; dictionaries and the numbers of their features stay. After
an encoder was trained again its dictionary must be fitted again too (`make embedded-spaces`,
`make photos-space`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from features.dictionary import Dictionary
from features.dictionary.base import WEIGHTS, dictionary_from_record
from features.dictionary.held_out import held_out_figures
from features.embedded import ENCODER_NAMES, SPACES
from features.embedded.build_photos_space import GARMENTS_SEEN, scored_and_shown, words_of_captions
from features.embedded.photos import PhotoPairs
from features.embedded.world import EmbeddedPairs
from features.encoders.load import load_encoder
from features.space.score import score
from features.store.extract import extract
from features.store.store import ActivationStore


def shipped_dictionary(name: str, train: ActivationStore) -> Dictionary:
    """The dictionary of a shipped space, with its figures on the pairs that were held out of its
    training store, as this version computes both."""
    record = json.loads((SPACES / name / "config.json").read_text(encoding="utf-8"))
    dictionary = dictionary_from_record(record["dictionary"], SPACES / name / WEIGHTS)
    dictionary.config = dataclasses.replace(
        dictionary.config,
        encoder_fingerprint=train.config.encoder_fingerprint,
        held_out=held_out_figures(dictionary, train),
    )
    return dictionary


def score_emoji(work: Path) -> None:
    """`embedded` and `embedded-ssl`, each judged by the other."""
    stores = {}
    dictionaries = {}
    for name in ENCODER_NAMES:
        encoder = load_encoder(name, device="cpu")
        train = extract(EmbeddedPairs("train"), encoder, work / name / "train")
        dictionaries[name] = shipped_dictionary(name, train)
        stores[name] = extract(EmbeddedPairs(), encoder, work / name / "store")
    for name, judge in zip(ENCODER_NAMES, reversed(ENCODER_NAMES), strict=True):
        space = score(stores[name], dictionaries[name], stores[judge], EmbeddedPairs())
        space.save(SPACES / name)


def score_photos(work: Path) -> None:
    """`photos`, as `features.embedded.build_photos_space` scores it."""
    everything = extract(PhotoPairs(), load_encoder("photos", device="cpu"), work / "all")
    scored_and_shown(shipped_dictionary("photos", everything), work).save(SPACES / "photos")


def score_garments(work: Path) -> None:
    """`garments`, as `features.embedded.build_photos_space` scores it."""
    source = PhotoPairs(GARMENTS_SEEN)
    store = extract(source, load_encoder("photos", device="cpu"), work / GARMENTS_SEEN)
    dictionary = shipped_dictionary("garments", store)
    terms = words_of_captions(store)
    score(store, dictionary, source=source, terms=terms).save(SPACES / "garments")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the stores")
    work = parser.parse_args().work
    score_emoji(work)
    score_photos(work / "photos")
    score_garments(work / "photos")


if __name__ == "__main__":
    main()
