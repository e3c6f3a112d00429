"""Activation stores: the embeddings of many pairs on disk."""

from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store
from features.store.writer import StoreWriter

__all__ = ["ActivationStore", "StoreConfig", "StoreWriter", "sample_table", "write_store"]
