"""``mtl-cloud data``: prepare datasets, inspect prepared ones, and verify them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtl_cloud.cli.common import examples, output_options
from mtl_cloud.cli.output import console, print_json, print_pairs, print_table
from mtl_cloud.errors import DatasetError, MissingExtraError

if TYPE_CHECKING:
    from mtl_cloud.datasets.preparation.describe import SplitSummary
    from mtl_cloud.datasets.preparation.prepare import Options
    from mtl_cloud.datasets.preparation.verify import Damage
    from mtl_cloud.datasets.shards import DatasetManifest, Finding

_SHOWN = 20
"""The number of findings that are printed; --json has all of them."""


@click.group(
    "data",
    epilog=examples(
        "data prepare imagenet ~/ILSVRC2012 s3://bucket/imagenet",
        "data inspect s3://bucket/imagenet --sheet sheet.png",
        "data verify s3://bucket/imagenet",
    ),
    no_args_is_help=True,
)
def command() -> None:
    """Prepare datasets as shards for training from S3 or a folder, and inspect them.

    A prepared dataset is a set of tar shards in webdataset's naming, with an index. A job names its folder or URL as
    `dataset.uri`. Each subcommand has --json and --debug.

    JSON: {name, digest, ...}; see the subcommands.
    """


@command.command(
    "prepare",
    epilog=examples(
        "data prepare imagenet ~/ILSVRC2012 s3://bucket/imagenet --workers 16",
        "data prepare voc ~/VOCtrainval_11-May-2012.tar ~/voc --split train --split val --split trainval",
        "data prepare cifar10 s3://bucket/cifar-10-batches-py ~/cifar10",
    ),
)
@click.argument("original", metavar="imagenet|voc|cifar10", type=click.Choice(["imagenet", "voc", "cifar10"]))
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--split", "splits", multiple=True, metavar="NAME", help="Only these splits. Repeatable.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes; default: one per core.")
@click.option("--shard-mib", type=click.IntRange(1, 2048), default=64, show_default=True, help="Size of a shard.")
@click.option(
    "--on-bad",
    type=click.Choice(["fatal", "skip", "quarantine"]),
    default="fatal",
    show_default=True,
    help="On a bad sample: stop, skip it, or skip it and keep a copy.",
)
@output_options
def prepare(
    *,
    original: str,
    source: str,
    target: str,
    splits: tuple[str, ...],
    workers: int | None,
    shard_mib: int,
    on_bad: Any,
    as_json: bool,
) -> None:
    """Turn the original archives in SRC into a prepared dataset in DST; both are folders or URLs.

    Archives are read in place, without unpacking: ILSVRC2012's tars next to the devkit's text files, VOCdevkit as a
    folder or tar, CIFAR-10's pickled batches. Every image is decoded and every label checked. Bad samples are damaged,
    wrongly labelled, or have a duplicate name. Unusual samples (CMYK, PNG, duplicate bytes) are kept and listed. A
    command that was killed resumes where it stopped.

    JSON: {name, digest, splits: {name: {samples, digest, shards, index, boxes, left_out, notes}}, ...}: the manifest.
    """
    with _extra():
        from mtl_cloud.datasets.preparation.prepare import Options

        options = Options(workers or len(os.sched_getaffinity(0)), shard_mib << 20, on_bad)
        manifest = _prepare(original, source, target, splits, options)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        _print_prepared(manifest, target)


def _prepare(original: Any, source: str, target: str, splits: tuple[str, ...], options: Options) -> DatasetManifest:
    from mtl_cloud.datasets.preparation.archives import ALIASES, open_sources
    from mtl_cloud.datasets.preparation.prepare import prepare
    from mtl_cloud.storage import open_storage

    with _bar("reading the archives' headers", "samples") as bar, open_sources(original, source, splits) as sources:
        total = sum(map(len, sources.values()))
        advance = bar(f"preparing {original}", total)
        aliases = ALIASES.get(original, {})
        return prepare(original, sources, open_storage(target), options, aliases=aliases, advance=advance)


def _print_prepared(manifest: DatasetManifest, target: str) -> None:
    for name, split in manifest.splits.items():
        click.echo(f"{name}: {split.samples} samples in {len(split.shards)} shards")
        _print_findings(f"left out of {name}", split.left_out)
        _print_findings(f"unusual in {name}", split.notes)
    click.echo(f"digest {manifest.digest}\n\ndataset:\n  name: {manifest.name}\n  uri: {target}")


def _print_findings(title: str, findings: tuple[Finding, ...]) -> None:
    if findings:
        click.echo(f"{title}: {len(findings)}")
    for finding in findings[:_SHOWN]:
        click.echo(f"  {finding.what}")
    if len(findings) > _SHOWN:
        click.echo(f"  … and {len(findings) - _SHOWN} more")


@command.command("inspect", epilog=examples("data inspect ~/voc", "data inspect s3://bucket/voc --sheet voc.png"))
@click.argument("path", metavar="PATH")
@click.option(
    "--sheet", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write samples as a PNG."
)
@click.option("--split", metavar="NAME", help="The split to sample; default: the first.")
@output_options
def inspect(path: str, sheet: Path | None, split: str | None, *, as_json: bool) -> None:
    """Show the contents of the prepared dataset PATH: counts, sizes, and images per class.

    JSON: {name, digest, classes: {task: [...]}, splits: {name: {samples, shards, bytes, pixels, labelled, per_class,
    left_out, notes}}}.
    """
    with _extra():
        from mtl_cloud.datasets.preparation.describe import sample_sheet, summarise
        from mtl_cloud.datasets.shards import open_shards, read_manifest
        from mtl_cloud.storage import open_storage

        manifest = read_manifest(open_storage(path))
        summaries = summarise(path, manifest)
        if sheet:
            sheet.write_bytes(sample_sheet(open_shards(path, split or next(iter(manifest.splits)))))
    if as_json:
        print_json(_inspected(manifest, summaries))
    else:
        _print_inspected(manifest, summaries)


def _inspected(manifest: DatasetManifest, summaries: dict[str, SplitSummary]) -> dict[str, Any]:
    found = {name: manifest.splits[name].model_dump(include={"left_out", "notes"}, mode="json") for name in summaries}
    splits = {name: asdict(summary) | found[name] for name, summary in summaries.items()}
    return {"name": manifest.name, "digest": manifest.digest, "classes": manifest.classes, "splits": splits}


def _print_inspected(manifest: DatasetManifest, summaries: dict[str, SplitSummary]) -> None:
    print_pairs([("dataset", manifest.name), ("digest", manifest.digest)])
    titles = ["split", "samples", "shards", "MiB", "width", "height", "left out", "unusual"]
    rows = [_summary_row(name, summary, manifest) for name, summary in summaries.items()]
    print_table(titles, rows, right=range(1, len(titles)))
    for task in manifest.ordered_classes():
        counted = [summary.per_class.get(task) for summary in summaries.values()]
        if None not in counted:
            click.echo()
            counts = zip(*counted, strict=True)
            lines = [[name, *map(str, row)] for name, row in zip(manifest.classes[task], counts, strict=True)]
            print_table([_COUNTED[task], *summaries], lines, right=range(1, 1 + len(summaries)))


_COUNTED = {"classification": "images of class", "detection": "boxes of class"}


def _summary_row(name: str, summary: SplitSummary, manifest: DatasetManifest) -> list[str]:
    sides = [
        f"{summary.pixels[f'{side}_min']}-{summary.pixels[f'{side}_max']} ({summary.pixels[f'{side}_median']})"
        for side in ("width", "height")
    ]
    split = manifest.splits[name]
    counts = [str(summary.samples), str(summary.shards), f"{summary.bytes / 2**20:,.0f}"]
    return [name, *counts, *sides, str(len(split.left_out)), str(len(split.notes))]


@command.command("verify", epilog=examples("data verify ~/voc", "data verify s3://bucket/imagenet --json"))
@click.argument("path", metavar="PATH")
@output_options
def verify(path: str, *, as_json: bool) -> int:
    """Read the whole prepared dataset PATH, verify its checksums, and list damaged files (exit code 9).

    JSON: {name, digest, damaged: [{file, what, samples}]}.
    """
    with _extra():
        from mtl_cloud.datasets.preparation.verify import total_bytes, verify
        from mtl_cloud.datasets.shards import read_manifest
        from mtl_cloud.storage import open_storage

        storage = open_storage(path)
        manifest = read_manifest(storage)
        with _bar("verifying", "bytes") as bar:
            damaged = verify(storage, checked=bar("verifying", total_bytes(manifest)))
    if as_json:
        damage = list(map(asdict, damaged))
        print_json({"name": manifest.name, "digest": manifest.digest, "damaged": damage})
    else:
        _print_damage(damaged, manifest)
    return DatasetError.exit_code if damaged else 0


def _print_damage(damaged: list[Damage], manifest: DatasetManifest) -> None:
    for damage in damaged:
        click.echo(f"{damage.file}: {damage.what}")
        for key in damage.samples[:_SHOWN]:
            click.echo(f"  {key}")
        if len(damage.samples) > _SHOWN:
            click.echo(f"  … and {len(damage.samples) - _SHOWN} more samples")
    files = sum(len(split.files) for split in manifest.splits.values())
    click.echo(f"{len(damaged)} of {files} files are damaged" if damaged else f"{files} files, all intact")


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in {"numpy", "PIL", "simplejpeg", "awscrt"}:
            raise
        raise MissingExtraError("data", "mtl-cloud data") from error


@contextmanager
def _bar(first: str, unit: str) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """A progress bar on standard error. Yields ``begin(description, total)``, which returns ``advance(amount)``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    shown = console(err=True)
    with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as progress:
        task = progress.add_task(first, total=None)

        def begin(description: str, total: int) -> Callable[[int], None]:
            progress.update(task, description=description, total=total)
            return lambda done: progress.advance(task, done)

        yield begin
