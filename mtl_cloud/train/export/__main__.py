"""The child of ``mtl-cloud export``: its wish comes as JSON on the command line, its answer goes to standard output.

The answer is an ``Export`` as JSON, or ``{"error": {"message", "hint", "exit_code"}}``; anything else that is said goes
to standard error.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtl_cloud.errors import MtlCloudError
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import open_storage
from mtl_cloud.train.export import export_run


def main(wish: str) -> dict[str, Any]:
    """Do it, and return the answer."""
    wanted = json.loads(wish)
    try:
        run = RunRecord(open_storage(wanted["storage"]), wanted["run_id"])
        with redirect_stdout(sys.stderr):  # exporters talk
            export = export_run(
                run, checkpoint=wanted["checkpoint"], what=wanted["what"], folder=Path(wanted["folder"])
            )
    except MtlCloudError as error:
        return {"error": {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}}
    return asdict(export)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    print(json.dumps(main(sys.argv[1])))  # noqa: T201  # the answer
