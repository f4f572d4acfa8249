"""The child process of ``mtl-cloud export``: takes a request as JSON argument, prints the result to standard output.

The result is an ``Export`` as JSON, or ``{"error": {"message", "hint", "exit_code"}}``. All other output goes to
standard error.
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


def main(argument: str) -> dict[str, Any]:
    """Export as the JSON request ``argument`` says, and return the result."""
    request = json.loads(argument)
    try:
        run = RunRecord(open_storage(request["storage"]), request["run_id"])
        with redirect_stdout(sys.stderr):  # torch's exporters print
            export = export_run(
                run, checkpoint=request["checkpoint"], what=request["what"], folder=Path(request["folder"])
            )
    except MtlCloudError as error:
        return {"error": {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}}
    return asdict(export)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    print(json.dumps(main(sys.argv[1])))  # noqa: T201  # the result
