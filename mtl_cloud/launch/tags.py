"""Tags of a run's resources at AWS. The policies of ``mtl-cloud iam`` depend on three: run, purchase and key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from mtl_cloud.jobspec.job import Ec2Compute
from mtl_cloud.names import (
    EXPIRES_TAG,
    KEY_TAG,
    OWNER_TAG,
    PURCHASE_TAG,
    RUN_TAG,
    SPEC_TAG,
    SPOT_THEN_ON_DEMAND,
    STORAGE_TAG,
)
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["read_tags", "run_tags"]


def run_tags(plan: PlanRecord, *, owner: str, expires_at: datetime) -> dict[str, str]:
    """The job's own tags, and ours, which they never hide."""
    compute = compute_of(plan)
    changes = isinstance(compute, Ec2Compute) and compute.purchase == SPOT_THEN_ON_DEMAND
    own = {name: value for name, value in plan.tags.items() if name.lower() != KEY_TAG}  # to IAM both are the same
    return {
        **own,
        RUN_TAG: plan.run_id,
        OWNER_TAG: owner,
        EXPIRES_TAG: expires_at.isoformat(),
        SPEC_TAG: plan.spec_digest[:16],
        STORAGE_TAG: plan.storage,
        **({PURCHASE_TAG: SPOT_THEN_ON_DEMAND} if changes else {}),
    }


def read_tags(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """AWS's list of tags as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in tags}
