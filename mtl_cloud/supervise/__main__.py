"""``python -m mtl_cloud.supervise``: process 1 of the container, or the detached process of a local run.

Exit codes: 0, the run is done; 7, it ended otherwise; 75, another attempt will continue it (this machine is leaving, or
another attempt owns the run); 73, another process has claimed this attempt; otherwise those of ``errors``.
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, MtlCloudError, RunFailedError
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.storage import open_storage
from mtl_cloud.storage.retrying import PatientStorage
from mtl_cloud.supervise.context import SupervisorContext
from mtl_cloud.supervise.failure_policy import Decision
from mtl_cloud.supervise.init import become_init
from mtl_cloud.supervise.nodes import ALONE
from mtl_cloud.supervise.preemption import InstanceMetadata
from mtl_cloud.supervise.sagemaker import SageMakerContainer
from mtl_cloud.supervise.stop_conditions import SignalWatcher
from mtl_cloud.supervise.supervisor import supervise
from mtl_cloud.supervise.worker_node import serve_leader
from mtl_cloud.user_dirs import default_scratch

EXIT_TAKEN = 73
"""Another process has claimed the attempt (``EX_CANTCREAT`` of sysexits.h)."""
EXIT_CONTINUES = 75
"""The run is not over (``EX_TEMPFAIL``)."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if os.getpid() == 1:
        become_init()
    container = SageMakerContainer(args.sagemaker) if args.sagemaker else None
    try:
        with SignalWatcher() as signals:
            decision = _supervise(args, signals, container)
    except AlreadyExistsError as error:
        return _leave(error.with_hint, EXIT_TAKEN, container)
    except MtlCloudError as error:
        return _leave(error.with_hint, error.exit_code, container)
    return _report(decision, container)


def _supervise(args: Namespace, signals: SignalWatcher, container: SageMakerContainer | None) -> Decision:
    settings = SupervisorOptions.from_flags(args)
    storage = PatientStorage(open_storage(args.storage), patience_s=settings.patience_s, clock=Clock())
    run = RunRecord(storage, args.run_id)
    context = SupervisorContext(
        scratch=args.scratch or default_scratch(args.run_id, os.environ),
        environ=container.environ(os.environ) if container else os.environ,
        watchers=[signals],
        metadata=InstanceMetadata(os.environ) if args.spot_notices else None,
        nodes=container.nodes() if container else ALONE,
        echo=args.echo,
        settings=settings,
    )
    return supervise(run, args.attempt, context) if context.nodes.leads else serve_leader(run, context)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mtl_cloud.supervise", description="Supervise a run on this machine."
    )
    parser.add_argument("--storage", required=True, metavar="URL", help="storage that holds the run record")
    parser.add_argument("--run-id", required=True, metavar="ID", help="the run")
    parser.add_argument("--attempt", type=int, metavar="N", help="attempt to claim (default: the next free one)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="local folder of the run (default: user state)")
    parser.add_argument("--spot-notices", action="store_true", help="watch EC2's metadata service for its notices")
    parser.add_argument("--sagemaker", type=Path, metavar="DIR", help="keep SageMaker's contract in DIR (/opt/ml)")
    parser.add_argument("--echo", action="store_true", help="copy the trainer's log to standard output")
    SupervisorOptions.add_flags(parser)
    return parser


def _report(decision: Decision, container: SageMakerContainer | None) -> int:
    otherwise = EXIT_CONTINUES if decision.action == "leave" else RunFailedError.exit_code
    return _leave(
        f"{decision.outcome}: {decision.message}", 0 if decision.outcome == Outcome.DONE else otherwise, container
    )


def _leave(message: str, exit_code: int, container: SageMakerContainer | None) -> int:
    sys.stderr.write(f"mtl-cloud: {message}\n")
    if container and exit_code:
        container.report_failure(message)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
