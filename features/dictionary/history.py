"""What a training measures on its way: metrics.jsonl always, and a tracker where one is wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import UserError, first_line
from features.files import jsonable, replacing

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS = "metrics.jsonl"
PROJECT = "mms"
TRACKERS = ("tensorboard", "wandb", "trackio")


def require_tracker(tracker: str | None) -> None:
    """Raise a UserError where a tracker is none that is known, or its package is missing."""
    if tracker is None:
        return
    if tracker not in TRACKERS:
        raise UserError(f"tracker {tracker}: unknown; use one of {', '.join(TRACKERS)}")
    from accelerate.tracking import get_available_trackers

    if tracker not in [str(name) for name in get_available_trackers()]:
        raise UserError(f"tracker {tracker}: not installed; run: pip install {tracker}")


class History:
    """One line a measurement: `{"step": 20, "fvu": ...}`, in the main process.

    Args:
        folder: in which metrics.jsonl lies.
        first: the step from which training goes on; what was measured from there on is left out.
        accelerator: made with the tracker, if any.
        settings: that the tracker is told.

    Raises:
        UserError: the tracker doesn't start.
    """

    def __init__(
        self, folder: Path, first: int, accelerator: Accelerator, settings: dict[str, Any]
    ) -> None:
        self._path = folder / METRICS
        self._accelerator = accelerator
        if not accelerator.is_main_process:
            return
        earlier = self._path.read_text(encoding="utf-8").splitlines() if first else []
        with replacing(self._path) as temporary:
            temporary.write_text(
                "".join(line + "\n" for line in earlier if json.loads(line)["step"] < first),
                encoding="utf-8",
            )
        if accelerator.log_with:
            plain = {key: "" if value is None else value for key, value in settings.items()}
            try:
                accelerator.init_trackers(PROJECT, config=plain)
            except Exception as error:  # each tracker raises its own
                raise UserError(
                    f"tracker {accelerator.log_with[0]}: does not start ({first_line(error)}); "
                    "set it up, or leave --tracker out"
                ) from error

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Write what was measured after a step."""
        if not self._accelerator.is_main_process:
            return
        record = {"step": step} | jsonable(values)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        known = {key: value for key, value in values.items() if value is not None}
        self._accelerator.log(known, step=step)

    def end(self) -> None:
        """Close the tracker; accelerate's own end of training would part the processes."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
