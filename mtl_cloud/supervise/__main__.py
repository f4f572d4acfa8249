"""``python -m mtl_cloud.supervise``: process 1 of the container, or the detached process of a local run.

It exits with one of ``SupervisorExit``, or with the code of the error that stopped it (``errors``).
"""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, MtlCloudError
from mtl_cloud.names import SAGEMAKER_ROOT, SupervisorExit, SupervisorFlag
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome
from mtl_cloud.runs.supervisor_options import SupervisorOptions
from mtl_cloud.storage import open_storage
from mtl_cloud.storage.retrying import RetryingStorage
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


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if os.getpid() == 1:
        become_init()
    container = SageMakerContainer(args.sagemaker) if args.sagemaker else None
    try:
        with SignalWatcher() as signals:
            decision = _supervise(args, signals, container)
    except AlreadyExistsError as error:
        return _leave(error.with_hint, SupervisorExit.TAKEN, container)
    except MtlCloudError as error:
        return _leave(error.with_hint, error.exit_code, container)
    return _report(decision, container)


def _supervise(args: Namespace, signals: SignalWatcher, container: SageMakerContainer | None) -> Decision:
    settings = SupervisorOptions.from_flags(args)
    storage = RetryingStorage(open_storage(args.storage), patience_s=settings.patience_s, clock=Clock())
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
    parser.add_argument(SupervisorFlag.STORAGE, required=True, metavar="URL", help="storage that holds the run record")
    parser.add_argument(SupervisorFlag.RUN_ID, required=True, metavar="ID", help="the run")
    parser.add_argument(
        SupervisorFlag.ATTEMPT, type=int, metavar="N", help="attempt to claim (default: the next free one)"
    )
    parser.add_argument(
        SupervisorFlag.SCRATCH, type=Path, metavar="DIR", help="local folder of the run (default: user state)"
    )
    parser.add_argument(
        SupervisorFlag.SPOT_NOTICES, action="store_true", help="watch EC2's metadata service for its notices"
    )
    parser.add_argument(
        SupervisorFlag.SAGEMAKER, type=Path, metavar="DIR", help=f"keep SageMaker's contract in DIR ({SAGEMAKER_ROOT})"
    )
    parser.add_argument(SupervisorFlag.ECHO, action="store_true", help="copy the trainer's log to standard output")
    SupervisorOptions.add_flags(parser)
    return parser


def _report(decision: Decision, container: SageMakerContainer | None) -> int:
    return _leave(f"{decision.outcome}: {decision.message}", _exit_code(decision), container)


def _exit_code(decision: Decision) -> SupervisorExit:
    if decision.outcome == Outcome.DONE:
        return SupervisorExit.DONE
    return SupervisorExit.CONTINUES if decision.action == "leave" else SupervisorExit.ENDED


def _leave(message: str, exit_code: int, container: SageMakerContainer | None) -> int:
    sys.stderr.write(f"mtl-cloud: {message}\n")
    if container and exit_code:
        container.report_failure(message)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
