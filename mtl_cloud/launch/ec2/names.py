"""Names of what a run has at AWS. They follow from the run id, so that anybody can find and adopt it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["aws_name", "read_tags"]


def aws_name(run_id: str) -> str:
    """Of the launch template, the Auto Scaling group and its scheduled action alike.

    The policies of ``mtl-cloud iam`` rest on the prefix: it may not change by itself.
    """
    return f"mtl-cloud-{run_id}"


def read_tags(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """AWS's list of tags as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in tags}
