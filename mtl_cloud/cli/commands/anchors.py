"""``mtl-cloud anchors``: YOLOv3's anchors from the boxes that a job trains on."""

from __future__ import annotations

from typing import Any

import click

from mtl_cloud.cli.common import examples, output_options, overrides_option
from mtl_cloud.cli.output import print_json, print_table
from mtl_cloud.errors import MissingExtraError


@click.command("anchors", epilog=examples("anchors job.yaml", "anchors job.yaml --seed 1 --json"))
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@click.option("--seed", default=0, metavar="N", help="Seed of k-means; default 0.")
@overrides_option
@output_options
def command(file: str, seed: int, overrides: tuple[str, ...], as_json: bool) -> None:
    """Cluster the boxes of a job's train split into nine anchors, to paste into the job file.

    Boxes are measured after letterboxing to training.image_size; their distance is 1 - IoU. Darknet's nine anchors,
    the default of a job, are shown for comparison.

    JSON: {image_size, boxes, seed, anchors, mean_iou, darknet: {anchors, mean_iou}}.
    """
    found = _cluster(file, overrides, seed)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _cluster(file: str, overrides: tuple[str, ...], seed: int) -> dict[str, Any]:
    from mtl_cloud.jobspec.load import load_job

    job = load_job(file, overrides=overrides).job
    try:
        import numpy as np

        from mtl_cloud.datasets import open_splits
        from mtl_cloud.datasets.anchors import ANCHORS, box_sizes, cluster_sizes, mean_best_iou
    except ImportError as error:
        raise MissingExtraError("train", "clustering anchors") from error
    train, _ = open_splits(*job.datasets)
    sizes = box_sizes(train, job.training.image_size)
    # Rounded before the comparison, since the printed values are those that training will use.
    anchors = cluster_sizes(sizes, seed=seed).anchors.round(1)
    return {
        "image_size": job.training.image_size,
        "boxes": len(sizes),
        "seed": seed,
        "anchors": anchors.tolist(),
        "mean_iou": mean_best_iou(sizes, anchors),
        "darknet": {"anchors": list(map(list, ANCHORS)), "mean_iou": mean_best_iou(sizes, np.array(ANCHORS))},
    }


def _print(found: dict[str, Any]) -> None:
    darknet = found["darknet"]
    click.echo(f"{found['boxes']} boxes, in pixels at {found['image_size']}\n")
    rows = [
        *([_pair(ours), _pair(theirs)] for ours, theirs in zip(found["anchors"], darknet["anchors"], strict=True)),
        [f"{found['mean_iou']:.3f}", f"{darknet['mean_iou']:.3f}"],
    ]
    titles = ["", "these boxes", "darknet's"]
    names = [*(f"anchor {n}" for n in range(1, 10)), "mean best IoU"]
    print_table(titles, [[name, *row] for name, row in zip(names, rows, strict=True)], right=(1, 2))
    pairs = ", ".join(f"[{width:g}, {height:g}]" for width, height in found["anchors"])
    click.echo(f"\nmodel:\n  anchors: [{pairs}]")


def _pair(size: list[float]) -> str:
    return f"{size[0]:g} x {size[1]:g}"
