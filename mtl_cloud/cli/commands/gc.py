"""``mtl-cloud gc``: remove resources that runs left behind at AWS, or on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from typing import TYPE_CHECKING, TypeAlias

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json, print_table, print_warnings

if TYPE_CHECKING:
    from mtl_cloud.launch.leftover import Leftover

    _Remove: TypeAlias = Callable[[list[Leftover]], Iterator[Leftover]]

log = logging.getLogger(__name__)
_HOME = "us-east-1"
"""The region that lists all others. Accounts of AWS China and GovCloud do not have it and must name --region."""


@click.command("gc", epilog=examples("gc --dry-run", "gc --region eu-west-1 --yes", "gc --backend docker"))
@click.option(
    "--backend",
    type=click.Choice(["ec2", "docker"]),
    default="ec2",
    show_default=True,
    help="Where to look: at AWS, or in the container engine of this machine.",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="REGION",
    help="AWS region to look in; may be repeated.  [default: every region of the account]",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_options
def command(*, backend: str, regions: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove AWS resources of runs that have expired or are over: groups, launch templates and instances.

    They are found by their tags, in the whole account, independent of this computer. Regions that cannot be searched
    are listed. With --backend docker: ended containers on this machine, of runs that are over, found by their labels.
    Records and checkpoints are never removed, and runs that may continue are not touched.

    JSON: [{run_id, owner, reason, names, region, removed}, ...].
    """
    found, place, remove = _at_aws(regions) if backend == "ec2" else _on_this_machine()
    if not as_json:
        _print(found, place)
    removes = bool(found) and not dry_run and (yes or click.confirm("Remove them?", err=True))
    for leftover in remove(found if removes else []):
        if not as_json:
            click.echo(f"{leftover.run_id}: removed")
    if as_json:
        print_json([{**asdict(leftover), "removed": removes} for leftover in found])


def _at_aws(regions: tuple[str, ...]) -> tuple[list[Leftover], str, _Remove]:
    from mtl_cloud.aws import AwsClients
    from mtl_cloud.clock import Clock
    from mtl_cloud.launch.ec2.sweep import enabled_regions, look_in, remove_leftovers

    clients, clock = cache(AwsClients), Clock()
    wanted = regions or tuple(enabled_regions(clients(_HOME)))
    looks = look_in(wanted, clients, now=clock.now(), is_over=_is_over)
    print_warnings(f"{look.region}: not searched: {look.refused}" for look in looks if look.refused)
    place = wanted[0] if len(wanted) == 1 else f"{sum(not look.refused for look in looks)} regions"
    found = [leftover for look in looks for leftover in look.found]
    return found, place, partial(remove_leftovers, clients=clients, clock=clock)


def _on_this_machine() -> tuple[list[Leftover], str, _Remove]:
    from mtl_cloud.container.engine import Engine
    from mtl_cloud.launch.docker import find_leftovers, remove_leftovers

    engine = Engine.find(os.environ)
    found = find_leftovers(engine, is_over=_is_over)
    return found, "this machine's engine", partial(remove_leftovers, engine=engine)


def _is_over(run_id: str, storage: str) -> bool:
    """Whether the run has a result. If its record cannot be read, only the expiry decides."""
    from mtl_cloud.errors import MissingExtraError, StorageError
    from mtl_cloud.runs.record import RunRecord
    from mtl_cloud.storage import open_storage

    try:
        return RunRecord(open_storage(storage), run_id).result() is not None
    except (MissingExtraError, StorageError) as error:
        log.warning("%s: its run record cannot be read: %s", run_id, error)
        return False


def _print(found: list[Leftover], place: str) -> None:
    if not found:
        click.echo(f"nothing is left in {place}")
        return
    rows = [(x.run_id, x.owner, x.region, x.reason, ", ".join(x.names)) for x in found]
    print_table(("run", "owner", "region", "why", "what"), rows)
