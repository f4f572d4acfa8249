"""Round metrics as TensorBoard event files, copied into the run record after each round."""

from __future__ import annotations

import logging
from pathlib import Path

from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import RoundRecord

__all__ = ["EventLog"]

log = logging.getLogger(__name__)


class EventLog:
    """Writes one attempt's event file; ``tensorboard --logdir <storage>/runs/<run-id>/events`` shows it."""

    def __init__(self, run: RunRecord, attempt: int, folder: Path) -> None:
        self._run = run
        self._attempt = attempt
        self._folder = folder

    def write(self, record: RoundRecord) -> None:
        """Write a round's scalars (``loss/train/<task>``, ``<task>/<metric>``, …) at its step, and copy the file.

        If the local disk is full, logs a warning and writes nothing: the round's record holds the same values.
        """
        try:
            folder = self._write_locally(record)
        except OSError as error:
            log.warning("round %d has no TensorBoard events: %s", record.round, error)
            return
        for path in folder.iterdir():
            self._run.storage.write(self._run.paths.events(self._attempt) + path.name, path.read_bytes())

    def _write_locally(self, record: RoundRecord) -> Path:
        # One writer per round, so that no file stays open; TensorBoard merges the files of a folder.
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed only here

        folder = self._folder / f"{record.round:04d}"
        with SummaryWriter(str(folder)) as writer:
            for name, value in _scalars(record).items():
                writer.add_scalar(name, value, record.step)
        return folder


def _scalars(record: RoundRecord) -> dict[str, float]:
    scalars: dict[str, float | None] = {
        "speed/images_per_s": record.images_per_s,
        "speed/data_wait": record.data_wait,
        "learning_rate": record.learning_rate,
        **{f"loss/train/{task}": loss for task, loss in record.train_losses.items()},
        **{f"loss/val/{task}": loss for task, loss in record.val_losses.items()},
        **{f"{task}/{name}": value for task, values in record.metrics.items() for name, value in values.items()},
    }
    return {name: value for name, value in scalars.items() if value is not None}
