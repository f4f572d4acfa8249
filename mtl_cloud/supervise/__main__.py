"""``python -m mtl_cloud.supervise``: process 1 of the container, or the detached process of a local run.

Exit codes: 0 the run is done; 7 it is over, and not done; 75 it is not over, and goes on with another attempt (this
machine goes, or another attempt owns the run); 73 another process has this attempt; otherwise those of ``errors``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mtl_cloud.clock import Clock
from mtl_cloud.errors import AlreadyExistsError, MtlCloudError, RunFailedError
from mtl_cloud.patience import PatientStorage
from mtl_cloud.records import Outcome
from mtl_cloud.run_record import RunRecord
from mtl_cloud.storage import open_storage
from mtl_cloud.supervise.classify import Verdict
from mtl_cloud.supervise.settings import Settings
from mtl_cloud.supervise.spot import SpotWatcher
from mtl_cloud.supervise.supervisor import supervise
from mtl_cloud.supervise.surroundings import Surroundings, default_scratch
from mtl_cloud.supervise.watch import SignalWatcher

EXIT_TAKEN = 73
"""Another process has claimed the attempt (``EX_CANTCREAT`` of sysexits.h)."""
EXIT_GOES_ON = 75
"""The run is not over (``EX_TEMPFAIL``)."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        with SignalWatcher() as signals:
            settings = Settings.from_flags(args)
            storage = PatientStorage(open_storage(args.storage), patience_s=settings.patience_s, clock=Clock())
            around = Surroundings(
                scratch=args.scratch or default_scratch(args.run_id, os.environ),
                environ=os.environ,
                watchers=[signals],
                inquirers=[SpotWatcher(os.environ, Clock())] if args.spot_notices else [],
                settings=settings,
            )
            verdict = supervise(RunRecord(storage, args.run_id), args.attempt, around)
    except AlreadyExistsError as error:
        return _complain(error, EXIT_TAKEN)
    except MtlCloudError as error:
        return _complain(error, error.exit_code)
    return _report(verdict)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mtl_cloud.supervise", description="Supervise a run on this machine."
    )
    parser.add_argument("--storage", required=True, metavar="URL", help="storage that holds the run record")
    parser.add_argument("--run-id", required=True, metavar="ID", help="the run")
    parser.add_argument("--attempt", type=int, metavar="N", help="attempt to claim (default: the next free one)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="local folder of the run (default: user state)")
    parser.add_argument("--spot-notices", action="store_true", help="watch EC2's metadata service for spot notices")
    Settings.add_flags(parser)
    return parser


def _complain(error: MtlCloudError, exit_code: int) -> int:
    hint = f" ({error.hint})" if error.hint else ""
    sys.stderr.write(f"mtl-cloud: {error}{hint}\n")
    return exit_code


def _report(verdict: Verdict) -> int:
    sys.stderr.write(f"mtl-cloud: {verdict.outcome}: {verdict.message}\n")
    if verdict.action == "leave":
        return EXIT_GOES_ON
    return 0 if verdict.outcome == Outcome.DONE else RunFailedError.exit_code


if __name__ == "__main__":
    sys.exit(main())
