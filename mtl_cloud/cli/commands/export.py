"""``mtl-cloud export``: a run's weights for other programs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from mtl_cloud.cli.common import open_run, output_options, run_examples, run_options
from mtl_cloud.cli.output import print_json, print_pairs
from mtl_cloud.errors import MissingExtraError, MtlCloudError

FORMATS = ("state-dict", "darknet", "torch-export", "onnx")


@click.command("export", epilog=run_examples("export", "export 4f2a --checkpoint best --what onnx -o model"))
@run_options
@click.option(
    "--checkpoint", default="last", metavar="WHICH", help="last, best, or the number of a step; default last."
)
@click.option("--what", type=click.Choice(FORMATS), default="state-dict", help="The format; default state-dict.")
@click.option("-o", "--output", metavar="DIR", help="Folder to write into. Default <run id>-export.")
@output_options
def command(  # noqa: PLR0917  # click passes them by name
    run: str, storage: str | None, checkpoint: str, what: str, output: str | None, as_json: bool
) -> None:
    r"""Write a checkpoint's weights for other programs: those of the moving average, where the job keeps one.

    \b
    state-dict    safetensors; torchvision's keys for VGG16, AlexNet and FCN-ResNet50
    darknet       YOLOv3's .weights
    torch-export  a program for torch.export.load
    onnx          for other runtimes

    Needs the extra train, and for onnx the extra onnx. The folder's export.json says what the files are.

    JSON: {run_id, step, attempt, round, weights, model, classes, image_size, folder, files, notes}.
    """
    _require_extras(what)
    record = open_run(run, storage)
    folder = Path(output or f"{record.run_id}-export")
    request = {"storage": record.storage.url, "run_id": record.run_id, "checkpoint": checkpoint, "what": what}
    export = _run_export(request | {"folder": str(folder)})
    if as_json:
        print_json(export)
    else:
        _print(export)


def _require_extras(what: str) -> None:
    needed = {"train": ("torch", "torchvision", "safetensors"), "onnx": ("onnx", "onnxscript")}
    for extra in ("train", "onnx") if what == "onnx" else ("train",):
        if any(find_spec(module) is None for module in needed[extra]):
            raise MissingExtraError(extra, f"writing {what}")


def _run_export(request: dict[str, str]) -> dict[str, Any]:
    """Run the export in a process that may import torch; its log goes to standard error."""
    child = [sys.executable, "-m", "mtl_cloud.train.export", json.dumps(request)]
    done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise MtlCloudError(f"the export ended with code {done.returncode}", hint="see its output above")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise _error(**answer["error"])
    return answer


def _error(message: str, hint: str | None, exit_code: int) -> MtlCloudError:
    error = MtlCloudError(message, hint=hint)
    error.exit_code = exit_code
    return error


def _print(export: dict[str, Any]) -> None:
    weights = "moving average of the weights" if export["weights"] == "ema" else "weights"
    print_pairs(
        [
            ("run", export["run_id"]),
            ("from", f"{weights} at step {export['step']}"),
            *(("wrote", str(Path(export["folder"], name))) for name in export["files"]),
            *(("note", note) for note in export["notes"]),
        ]
    )
