"""Sparse dictionaries: one file a kind, one trainer, one registry."""

from features.dictionary.base import (
    DICTIONARIES,
    Dictionary,
    DictionaryConfig,
    SparseCode,
    load_dictionary,
    register,
    trained_kinds,
)
from features.dictionary.batchtopk import BatchTopKDictionary
from features.dictionary.group import GroupDictionary
from features.dictionary.identity import IdentityDictionary
from features.dictionary.linear import (
    JumpReluDictionary,
    ReluDictionary,
    SignedTopKDictionary,
)
from features.dictionary.matryoshka import MatryoshkaDictionary
from features.dictionary.ncl import NCLDictionary
from features.dictionary.reconstruction import reconstruction_figures
from features.dictionary.topk import TopKDictionary
from features.dictionary.train_config import TrainConfig
from features.dictionary.trainer import fit_dictionary, resolve_dictionary
from features.modality import Modality

__all__ = [
    "DICTIONARIES",
    "BatchTopKDictionary",
    "Dictionary",
    "DictionaryConfig",
    "GroupDictionary",
    "IdentityDictionary",
    "JumpReluDictionary",
    "MatryoshkaDictionary",
    "Modality",
    "NCLDictionary",
    "ReluDictionary",
    "SignedTopKDictionary",
    "SparseCode",
    "TopKDictionary",
    "TrainConfig",
    "fit_dictionary",
    "load_dictionary",
    "reconstruction_figures",
    "register",
    "resolve_dictionary",
    "trained_kinds",
]
