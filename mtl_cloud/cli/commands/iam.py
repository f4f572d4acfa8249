"""``mtl-cloud iam``: the IAM policies, with the reason for each statement."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mtl_cloud.cli.common import examples, output_options, region_option
from mtl_cloud.cli.output import print_json
from mtl_cloud.names import STORAGE_PREFIX

if TYPE_CHECKING:
    from mtl_cloud.bootstrap.policies import Policy

WHO = ("user", "instance", "group", "sagemaker")


@click.command(
    "iam", epilog=examples("iam user", "iam instance --region eu-west-1", "iam user --account 123456789012 --json")
)
@click.argument("who", type=click.Choice(WHO), required=False, metavar="[WHO]")
@region_option("Which region.")
@click.option("--account", default="ACCOUNT_ID", metavar="ID", help="Account id; default: a placeholder.")
@click.option("--prefix", default=STORAGE_PREFIX, show_default=True, help="The bucket's prefix that runs may use.")
@output_options
def command(*, who: str | None, region: str, account: str, prefix: str, as_json: bool) -> None:
    """Print the policies of WHO: user (who submits), instance (EC2), group (assumed by an instance to close its
    run's group), sagemaker; default all.

    They are the policies of the stack that `mtl-cloud bootstrap` deploys; AWS is not queried. Each role ends with its
    trust policy, which says who may assume the role.

    JSON: {WHO: [{name, document, reasons: {sid: reason}}]}; a document is valid input for IAM.
    """
    from mtl_cloud.bootstrap.policies import ROLES, policies, trust_policy

    asked = [who] if who else WHO
    found = {one: policies(one, account=account, region=region, prefix=prefix) for one in asked}
    trust = {one: [trust_policy(one, account=account, region=region)] for one in asked if one in ROLES}
    if as_json:
        print_json({one: [asdict(policy) for policy in [*found[one], *trust.get(one, [])]] for one in asked})
        return
    _show({policy.name: policy for own in found.values() for policy in own}.values())
    _show([policy for own in trust.values() for policy in own], "the role {}: who may assume it")


def _show(policies: Iterable[Policy], title: str = "{}") -> None:
    for policy in policies:
        click.secho(title.format(policy.name), bold=True)
        for statement in policy.document["Statement"]:
            click.echo("\n".join(_lines(statement, policy.reasons[statement["Sid"]])))


def _lines(statement: dict[str, Any], reason: str) -> Iterator[str]:
    yield f"\n  {click.style(statement['Sid'], fg='cyan')} ({statement['Effect'].lower()})"
    yield textwrap.fill(reason, 100, initial_indent="    ", subsequent_indent="    ")
    yield from (f"      {action}" for action in _list(statement["Action"]))
    yield from (f"      on {resource}" for resource in _list(statement.get("Resource", [])))
    yield from (f"      by {principal}" for principal in statement.get("Principal", {}).values())
    for operator, keys in statement.get("Condition", {}).items():
        yield from (f"      if {key} {operator} {' | '.join(_list(values))}" for key, values in keys.items())


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
