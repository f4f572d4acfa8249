"""Tags of what a run has at AWS. The policies of ``mtl-cloud iam`` rest on three: run, purchase, key."""

from __future__ import annotations

from datetime import datetime

from mtl_cloud.jobspec.job import Ec2Compute
from mtl_cloud.planning.compute import compute_of
from mtl_cloud.runs.schema import PlanRecord

__all__ = ["EXPIRES_TAG", "KEY_TAG", "OWNER_TAG", "PURCHASE_TAG", "RUN_TAG", "SPEC_TAG", "STORAGE_TAG", "run_tags"]

RUN_TAG = "mtl-cloud:run"
OWNER_TAG = "mtl-cloud:owner"
EXPIRES_TAG = "mtl-cloud:expires-at"
"""ISO 8601 in UTC: from then on nothing of the run may be left, and ``gc`` removes what is."""
SPEC_TAG = "mtl-cloud:spec"
"""The resolved job's SHA-256, its first 16 hex digits."""
PURCHASE_TAG = "mtl-cloud:purchase"
"""Of groups whose instances may change what the group buys: with that value alone their role allows it."""
KEY_TAG = "mtl-cloud-key"
"""Of a group and its launch template, and of nothing that an instance can look at: who brings that value to the role of
groups may close this group. Without a colon, because policies use it within ``${...}``."""
STORAGE_TAG = "mtl-cloud:storage"
"""Where the run's record is: with it ``gc`` needs nothing but AWS to begin with."""


def run_tags(plan: PlanRecord, *, owner: str, expires_at: datetime) -> dict[str, str]:
    """The job's own tags, and ours, which they never hide."""
    compute = compute_of(plan)
    changes = isinstance(compute, Ec2Compute) and compute.purchase == "spot_then_on_demand"
    own = {name: value for name, value in plan.tags.items() if name.lower() != KEY_TAG}  # to IAM both are the same
    return {
        **own,
        RUN_TAG: plan.run_id,
        OWNER_TAG: owner,
        EXPIRES_TAG: expires_at.isoformat(),
        SPEC_TAG: plan.spec_digest[:16],
        STORAGE_TAG: plan.storage,
        **({PURCHASE_TAG: "spot_then_on_demand"} if changes else {}),
    }
