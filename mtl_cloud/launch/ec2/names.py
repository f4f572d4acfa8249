"""Names and tags of what a run has at AWS. All of them follow from the run id, so that anybody can find and adopt it.

The policies of ``mtl-cloud iam`` rest on the prefix and on the tag ``RUN_TAG``: neither may change by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mtl_cloud.launch.tags import EXPIRES_TAG, OWNER_TAG, RUN_TAG, SPEC_TAG, STORAGE_TAG

__all__ = ["EXPIRES_TAG", "OWNER_TAG", "RUN_TAG", "SPEC_TAG", "STORAGE_TAG", "aws_name", "read_tags"]


def aws_name(run_id: str) -> str:
    """Of the launch template, the Auto Scaling group and its scheduled action alike."""
    return f"mtl-cloud-{run_id}"


def read_tags(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """AWS's list of tags as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in tags}
