"""What several commands of `mms` do with stores and dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from features.errors import UserError

if TYPE_CHECKING:
    from features.dictionary import TrainConfig
    from features.store.store import ActivationStore


def train_config(seed: int, given: dict[str, Any]) -> TrainConfig:
    """The dictionary's settings, with the defaults for what was not given.

    Args:
        given: fields of `TrainConfig`; None for the default.
    """
    from features.dictionary import TrainConfig

    return TrainConfig(
        seed=seed, **{name: value for name, value in given.items() if value is not None}
    )


def require_pairs(store: ActivationStore) -> None:
    """Raise a UserError for a store without pairs."""
    if len(store) == 0:
        raise UserError(
            f"{store.path}: none of the {store.config.skipped} records could be read; see "
            "skipped.jsonl there for the reasons"
        )


def report_skipped(store: ActivationStore) -> None:
    """Say which pairs were left out, and how many captions the encoder did not see whole."""
    config = store.config
    if config.skipped:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in config.skipped_reasons.items())
        path = store.path / "skipped.jsonl"
        typer.echo(f"{config.skipped} pairs skipped: {reasons}; listed in {path}", err=True)
    if config.captions_cut:
        typer.echo(
            f"{config.captions_cut} captions are longer than the context of {config.encoder}: they "
            "are kept as far as it sees them",
            err=True,
        )


def quality(held_out: dict[str, dict[str, float | None]] | None) -> str:
    figures = (held_out or {}).get("within", {})
    fvu, l0 = figures.get("fvu"), figures.get("l0")
    if fvu is None or l0 is None:
        return "held-out FVU not known"
    return f"held-out FVU within modality {fvu:.3f}, L0 {l0:.1f}"
