"""The step at which a run would resume, and its measured speed."""

from __future__ import annotations

from statistics import median

from mtl_cloud.runs.plan_facts import Resume
from mtl_cloud.runs.record import RunRecord

__all__ = ["find_resume"]


def find_resume(run: RunRecord) -> Resume | None:
    """The resume point; None if there is no such run. Raises ``StorageError``."""
    if not run.exists():
        return None
    rounds, checkpoints = run.rounds(), run.checkpoints()
    return Resume(
        run_id=run.run_id,
        rounds=len(rounds),
        step=max((checkpoint.step for checkpoint in checkpoints), default=None),
        images_per_s=median(done.images_per_s for done in rounds) if rounds else None,
    )
