"""The stack of ``mtl-cloud bootstrap`` in moto, for tests that need a bootstrapped account."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from mtl_cloud.aws.stack import Bootstrap, stack_outputs
from mtl_cloud.bootstrap.template import template_text
from mtl_cloud.names import STACK

__all__ = ["keep_outputs", "make_stack"]


def make_stack(client: Any, *, zones: int = 3, **parameters: str) -> Bootstrap:
    """Deploy the template through moto's CloudFormation client, with subnets in ``zones`` zones of its region."""
    for index in range(zones):
        parameters[f"Zone{index + 1}"] = f"{client.meta.region_name}{'abcdef'[index]}"
    with warnings.catch_warnings():
        # moto leaves the bucket's policy out, and says so.
        warnings.filterwarnings("ignore", "Tried to parse AWS::S3::BucketPolicy")
        client.create_stack(
            StackName=STACK,
            TemplateBody=template_text(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
    return stack_outputs(client)


def keep_outputs(patch: pytest.MonkeyPatch) -> None:
    """Give moto the outputs of a stack created by a change set; moto itself sets them for ``CreateStack`` only."""
    from moto.cloudformation.models import ChangeSet

    apply = ChangeSet.apply

    def apply_whole(change_set: Any) -> None:
        apply(change_set)
        change_set.stack.template = change_set.template
        change_set.stack._parse_template()
        change_set.stack.output_map = change_set.stack._create_output_map()

    patch.setattr(ChangeSet, "apply", apply_whole)
