"""``mtl-cloud init``: a commented job file to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mtl_cloud.catalog.datasets import DATASETS, DatasetName
from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import print_json
from mtl_cloud.errors import UsageError

_TEMPLATE = """\
# A training job. Check it with `mtl-cloud validate {file}`, run it with `mtl-cloud submit {file}`.
# All fields: `mtl-cloud schema > job.schema.json`, which editors use through the next line.
# yaml-language-server: $schema=job.schema.json
name: {name}
{extends}
compute:
  backend: local            # this machine; docker, ec2 and sagemaker run the same job elsewhere
  gpu_count: 0              # 0 trains on the CPU
  # backend: ec2
  # instance_type: [p4d.24xlarge, p4de.24xlarge]   # in order of preference
  # gpu_count: 8
  # purchase: spot
  # max_hours: 12           # wall clock over all attempts; then the run saves and stops
  # budget_usd: 100

dataset:
  name: {dataset}
{uri}
model:
  name: mtl_net             # VGG16, YOLOv3 and FCN-ResNet50, trained jointly
  width: {width:<19}# multiplies every channel count; 1.0 is the published network

training:
  rounds: {rounds:<18}# metrics are computed after each round
  epochs_per_round: {epochs}
  batch_size: 16
  image_size: {size:<14}# side of the square input, pixels
  augment: {{flip: {flip:<10}# probability of a mirrored image{why}

storage: mtl-runs           # folder, or s3://bucket/prefix, that run records go to
"""
_EXTENDS = "extends: standard           # a preset (standard, article, smoke); fields of this file override it\n"
_SMALL = {
    "extends": "",
    "width": "0.125",
    "rounds": "5",
    "epochs": "1",
    "size": "64",
    "flip": "0.0}",
    "why": "; digits have none",
}
_STANDARD = {
    "extends": _EXTENDS,
    "width": "1.0",
    "rounds": "20",
    "epochs": "5",
    "size": "416",
    "flip": "0.5}",
    "why": "",
}


@click.command(
    "init",
    epilog=examples("init", "init voc.yaml --dataset voc --uri /data/VOCdevkit", "init --name demo --force"),
)
@click.argument("file", default="job.yaml", metavar="[FILE]", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--dataset", type=click.Choice(tuple(DATASETS)), default="embedded", help="Which dataset; embedded needs no files."
)
@click.option("--uri", metavar="URL", help="Folder or archive that holds the dataset.")
@click.option("--name", default="my-job", help="The job's name; starts its run ids.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@output_options
def command(*, file: Path, dataset: DatasetName, uri: str | None, name: str, force: bool, as_json: bool) -> None:
    """Write a commented job file to start from (job.yaml unless named otherwise).

    JSON: {file, dataset, name}.
    """
    from mtl_cloud.jobspec.load import parse_job

    if DATASETS[dataset].needs_uri and uri is None:
        raise UsageError(f"--dataset {dataset} needs --uri", hint="give the folder or archive that holds the dataset")
    text = job_text(file.name, dataset, uri, name)
    parse_job(text.encode(), source=str(file), base=file.parent)
    _write(file, text, force=force)
    if as_json:
        print_json({"file": str(file), "dataset": dataset, "name": name})
    else:
        click.echo(f"wrote {file}; next: mtl-cloud validate {file}")


def job_text(file: str, dataset: str, uri: str | None, name: str) -> str:
    """The text of the job file: a small recipe for the embedded dataset, the standard recipe for the others."""
    recipe = _SMALL if dataset == "embedded" else _STANDARD
    line = f"  uri: {json.dumps(uri, ensure_ascii=False)}\n" if uri is not None else ""
    return _TEMPLATE.format(file=file, name=json.dumps(name), dataset=dataset, uri=line, **recipe)


def _write(file: Path, text: str, *, force: bool) -> None:
    try:
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise UsageError(f"{file} exists", hint="name another file, or overwrite it with --force") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
