"""Options of ``exec``, ``ssh`` and ``pull``, and the session that they open on a run's instance."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtl_cloud.cli.common import open_run, storage_option

if TYPE_CHECKING:
    from mtl_cloud.remote import Session

__all__ = ["host_option", "reach_options", "session_of"]

F = TypeVar("F", bound=Callable[..., Any])


def reach_options(command: F) -> F:
    """``--storage`` and ``--user``."""
    user = click.option("--user", default="ubuntu", show_default=True, help="The AMI's user (Amazon Linux: ec2-user).")
    return storage_option(user(command))


def host_option(command: F) -> F:
    return click.option("--host", is_flag=True, help="Run on the machine itself, not in the run's container.")(command)


def session_of(name: str, storage: str | None, user: str) -> tuple[str, Session]:
    """The run's id, and a session on its instance. Raises ``UsageError`` for a run that is not on EC2."""
    from mtl_cloud.aws import AwsClients
    from mtl_cloud.errors import UsageError
    from mtl_cloud.jobspec.job import Ec2Compute
    from mtl_cloud.planning.compute import compute_of
    from mtl_cloud.remote import Session, find_instance
    from mtl_cloud.remote.instance import require_tools
    from mtl_cloud.user_dirs import default_scratch

    run = open_run(name, storage)
    plan = run.plan()
    if plan.backend != "ec2":
        raise UsageError(f"{run.run_id}: runs on {plan.backend!r}; this command reaches EC2 instances only")
    require_tools()
    clients = AwsClients(compute_of(plan, Ec2Compute).region)
    instance = find_instance(run.run_id, clients)
    hosts = default_scratch("hosts", os.environ)
    session = Session(
        run.run_id, instance, clients, user=user, hosts=hosts, say=lambda words: click.echo(words, err=True)
    )
    return run.run_id, session
