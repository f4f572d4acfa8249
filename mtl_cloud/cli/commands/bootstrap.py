"""``mtl-cloud bootstrap``: create or remove the AWS resources that mtl-cloud needs in a region."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mtl_cloud.cli.common import examples, output_options, region_option
from mtl_cloud.cli.output import print_json, print_pairs, print_table

if TYPE_CHECKING:
    from mtl_cloud.aws import ClientMaker
    from mtl_cloud.aws.stack import Bootstrap
    from mtl_cloud.bootstrap.deploy import Deployment, Proposal


@click.command(
    "bootstrap",
    epilog=examples("bootstrap", "bootstrap --region eu-west-1 --vpc vpc-0123456789abcdef0", "bootstrap --destroy"),
)
@region_option("Which region.")
@click.option("--vpc", metavar="ID", help="Use this existing VPC and its subnets. Default: create one.")
@click.option(
    "--destroy", is_flag=True, help="Remove the stack; refused while runs are alive or the bucket holds data."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_options
def command(*, region: str, vpc: str | None, destroy: bool, yes: bool, as_json: bool) -> None:
    """Create the AWS resources that runs need in a region: network, bucket, image registry, log group and roles.

    Shows the changes, and makes them after you confirm. Running it again shows what has changed since. It needs the
    rights to create IAM roles, a VPC and a bucket; users who submit need only the policies of `mtl-cloud iam user`.

    JSON: {region, done, changes: [{action, resource, kind, replacement}], outputs}; outputs are null if nothing was
    deployed. Without --yes the changes are only shown.
    """
    from mtl_cloud.aws import AwsClients
    from mtl_cloud.bootstrap.deploy import Deployment
    from mtl_cloud.clock import Clock

    clients = AwsClients(region)
    report = (lambda _: None) if as_json else (lambda line: click.echo(f"  {line}", err=True))
    deployment = Deployment(clients, Clock(), report)
    if destroy:
        _destroy(deployment, clients, yes=yes, as_json=as_json)
    else:
        _make(deployment, region, vpc, yes=yes, as_json=as_json)


def _make(deployment: Deployment, region: str, vpc: str | None, *, yes: bool, as_json: bool) -> None:
    proposal = deployment.propose(vpc)
    if not as_json:
        _show(proposal, region)
    made = None
    if yes or not proposal.changes or (not as_json and click.confirm("Make these changes?")):
        made = deployment.accept(proposal)
    else:
        deployment.withdraw(proposal)
    if as_json:
        changes = [asdict(change) for change in proposal.changes]
        outputs = asdict(made) if made else None
        print_json({"region": region, "done": made is not None, "changes": changes, "outputs": outputs})
    elif made:
        _show_outputs(made)
    else:
        click.echo("nothing was changed")


def _show(proposal: Proposal, region: str) -> None:
    if not proposal.changes:
        click.echo(f"{region}: up to date")
        return
    rows = [(c.action, c.resource, c.kind, "replaced" if c.replacement else "") for c in proposal.changes]
    print_table(["action", "resource", "kind", ""], rows)


def _show_outputs(made: Bootstrap) -> None:
    print_pairs(
        [
            ("storage", made.storage),
            ("images", made.repository_uri),
            ("zones", ", ".join(sorted(made.subnets))),
            ("for users", ", ".join(made.user_policy_arns)),
        ]
    )


def _destroy(deployment: Deployment, clients: ClientMaker, *, yes: bool, as_json: bool) -> None:
    from mtl_cloud.bootstrap.remains import what_is_left
    from mtl_cloud.errors import UsageError

    left = what_is_left(clients)
    if left:
        title = f"{clients.region}: not destroyed, because these still exist:"
        raise UsageError(
            "\n".join([title, *(f"  {line}" for line in left)]),
            hint="`mtl-cloud cancel` and `mtl-cloud gc` end runs; `aws s3 rm --recursive` empties the bucket",
        )
    done = (yes or (not as_json and click.confirm(f"Remove mtl-cloud's stack in {clients.region}?"))) and (
        deployment.destroy()
    )
    if as_json:
        print_json({"region": clients.region, "done": done, "changes": [], "outputs": None})
    else:
        click.echo("removed" if done else "nothing was removed")
