"""Loading JPEGs as uint8 batches: ours, the decoder's limit and four peers, in one run on the same images.

    python benchmarks/data_loading.py VOCDEVKIT [--quick] [--workers 0 1 2] [--rounds 3] [--peers PYTHON]

The images are those of a VOC year (500 x 375 pixels, about 95 kB), as class folders, as our shards, and in the peers'
formats; the S3 server is a separate SeaweedFS. Every measurement runs in a new process, rounds are interleaved, and the
table shows medians of

* *images per CPU second* of the process, its loader workers and their servers: the throughput of one core, and the
  most reliable figure on a shared machine;
* *images/s* of wall-clock time, for a consumer that does nothing with them;
* *of decode*: images per CPU second as a fraction of only decoding the same JPEGs at full size, in the same round;
* *MiB*: memory of all the processes (proportional set size) at the end;
* for S3, requests and bytes per sample in the first two passes over the data, counted in a separate run.

Each measurement starts after one pass, so caches are warm. ``--peers`` is the interpreter that has the peers; peers
that it lacks are left out and listed. ``--quick`` does one round without workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import loaders

ROOT = Path(__file__).resolve().parents[1]
DECODE = "decode"
Row = dict[str, float]


def main() -> None:
    options = _arguments()
    if options.write:
        loaders.WRITERS[options.write](options.source)
    elif options.child:
        _leave(measure(options.child, options.source, options.workers[0], options.images))
    else:
        _compare(options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="VOCDEVKIT", help="folder with VOC2012/JPEGImages in it")
    parser.add_argument("--quick", action="store_true", help="one round of fewer images, no workers: about a minute")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000, help="of one measurement")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="the interpreter that has the peers")
    parser.add_argument("--only", nargs="+", default=[], help="contenders whose names begin so")
    parser.add_argument("--folder", type=Path, help="where data and the server's files go (default: temporary)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.workers, options.images = 1, [0], 600
    return options


# --- one measurement, in a process of its own -------------------------------------------------------------------------


def measure(name: str, folder: Path, workers: int, count: int) -> Row:
    """Measure ``count`` images after a first pass. Workers have prefetched as much at its end as at its beginning."""
    import torch

    torch.set_num_threads(1)
    contender = {**loaders.LIMITS, **loaders.OURS, **loaders.PEERS}[name]
    images = contender(folder, workers)
    _take(images, len(list((folder / "images").rglob("*.JPEG"))))
    cpu, started = _cpu_s(), time.perf_counter()
    taken = _take(images, count)
    wall, cpu = time.perf_counter() - started, _cpu_s() - cpu
    return {"per_cpu_s": taken / cpu, "per_s": taken / wall, "mib": _mib(), "passes": 1 + taken / count}


def _take(images: Iterator[int], count: int) -> int:
    taken = 0
    while taken < count:
        taken += next(images)
    return taken


def _tree(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _tree(int(child))


def _cpu_s() -> float:
    """CPU seconds of this process and all its descendants, including those that have exited."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in _tree(os.getpid())]
    return sum(int(ticks) for each in fields for ticks in each[11:15]) / os.sysconf("SC_CLK_TCK")


def _mib() -> float:
    lines = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in _tree(os.getpid())]
    return sum(int(line.split()[1]) for each in lines for line in each if line.startswith("Pss:")) / 1024


def _leave(row: Row) -> None:
    """Print the row, kill all descendants and exit, without waiting for loaders that never end."""
    print(json.dumps(row), flush=True)
    for pid in [*_tree(os.getpid())][1:]:
        os.kill(pid, 9)
    os._exit(0)


# --- all of them ------------------------------------------------------------------------------------------------------


def _compare(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from s3_servers import BUCKET, CREDENTIALS, seaweedfs

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with seaweedfs(folder / "s3") as url:
            names, missing = _contenders(options)
            environ = {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url}
            environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "BENCHMARK_S3": f"s3://{BUCKET}"}
            environ |= {"XDG_CACHE_HOME": str(folder / "cache")}
            environ |= {f"DATA_OPTIMIZER_{what}FOLDER": str(folder / "optimizer") for what in ("CACHE_", "DATA_CACHE_")}
            _prepare(folder, options, environ)
            environ["BENCHMARK_TAR_URLS"] = _upload(folder, url)
            rows = _rounds(names, folder, options, environ)
            traffic = {name: _traffic(name, folder, options, environ, url) for name in names if name.endswith("S3")}
    _print(rows, traffic, missing, options)


def _contenders(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Names of the contenders that can run, and of the peers that cannot."""
    wanted = [*loaders.LIMITS, *loaders.OURS, *loaders.PEERS]
    if options.only:
        wanted = [name for name in wanted if name == DECODE or name.startswith(tuple(options.only))]
    modules = {
        name: loaders.NEEDS[name.partition(",")[0].partition("-")[0]] for name in wanted if name in loaders.PEERS
    }
    missing = [name for name, module in modules.items() if _lacks(options.peers, module)]
    return [name for name in wanted if name not in missing], missing


def _lacks(python: str, module: str) -> bool:
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return bool(subprocess.run([python, "-c", found], check=False).returncode)


def _prepare(folder: Path, options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Write the same images as class folders, as our shards, as a tar for webdataset, and in the peers' formats."""
    year = next(path for path in sorted(options.source.glob("VOC2*")) if (path / "JPEGImages").is_dir())
    (folder / "VOCdevkit").mkdir()
    (folder / "VOCdevkit" / year.name).symlink_to(year.resolve())
    for image in sorted((year / "JPEGImages").iterdir()):
        named = ET.parse(year / "Annotations" / f"{image.stem}.xml").getroot().findtext("object/name", "")
        target = folder / "images" / f"n{sum(named.encode()):08d}" / f"{image.stem}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    (folder / "ours").mkdir()
    (folder / "ours" / "train").symlink_to(folder / "images")
    prepare = [sys.executable, "-m", "mtl_cloud", "data", "prepare", "--split", "train", "--shard-mib", "8"]
    for name, source, shards in (("imagenet", "ours", "shards"), ("voc", "VOCdevkit", "voc-shards")):
        arguments = [name, str(folder / source), str(folder / shards)]
        subprocess.run([*prepare, *arguments], check=True, env=environ, stdout=subprocess.DEVNULL)
    _write_tars(folder)
    for name, module in (("mds", "streaming"), ("litdata", "litdata")):
        if not _lacks(options.peers, module):
            command = [options.peers, __file__, str(folder), "--write", name]
            subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _write_tars(folder: Path) -> None:
    """Write tars with webdataset's names, in random order, as many as our shards."""
    (folder / "tars").mkdir()
    for number, shard in enumerate(sorted((folder / "shards").rglob("*.tar"))):
        (folder / "tars" / f"{number:04d}.tar").write_bytes(shard.read_bytes())
        assert tarfile.is_tarfile(shard)


def _upload(folder: Path, url: str) -> str:
    """Upload everything that is read from S3. Returns presigned URLs of webdataset's shards."""
    from s3_servers import BUCKET, client

    s3 = client(url)
    for name in ("shards", "tars", "mds", "litdata"):
        for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
            s3.upload_file(str(path), BUCKET, str(path.relative_to(folder)))
    keys = [f"tars/{path.name}" for path in sorted((folder / "tars").iterdir())]
    return " ".join(s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key}) for key in keys)


def _rounds(
    names: list[str], folder: Path, options: argparse.Namespace, environ: Mapping[str, str]
) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for _ in range(options.rounds):
        decode = 1.0
        for name in sorted(names, key=lambda name: name != DECODE):
            for workers in [0] if name in loaders.LIMITS else options.workers:
                row = _child(name, folder, workers, options, environ)
                if row is not None:
                    decode = row["per_cpu_s"] if name == DECODE else decode
                    found[name, workers].append({**row, "of_decode": row["per_cpu_s"] / decode})
    return found


def _child(
    name: str, folder: Path, workers: int, options: argparse.Namespace, environ: Mapping[str, str]
) -> Row | None:
    python = options.peers if name in loaders.PEERS else sys.executable
    command = [python, __file__, str(folder), "--child", name, "--workers", str(workers)]
    command += ["--images", str(options.images)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180, env=dict(environ))
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        complaints = [line for line in str(error.stderr or "").splitlines() if "Error" in line]
        print(f"{name}, {workers} workers: {complaints[-1] if complaints else error}", file=sys.stderr)
        return None
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def _traffic(
    name: str, folder: Path, options: argparse.Namespace, environ: Mapping[str, str], url: str
) -> dict[str, float] | None:
    """Requests and bytes per sample over two passes with an empty cache, without workers."""
    images = len(list((folder / "images").rglob("*.JPEG")))
    few = argparse.Namespace(**{**vars(options), "images": images})
    with _counting(url) as (proxied, counted):
        environ = {key: value.replace(url, proxied) for key, value in environ.items()}
        row = _child(name, folder, 0, few, {**environ, "XDG_CACHE_HOME": str(folder / "counted")})
    return row and {what: counted[what] / (row["passes"] * images) for what in ("requests", "bytes")}


@contextmanager
def _counting(url: str) -> Iterator[tuple[str, dict[str, int]]]:
    from fault_proxy import FaultProxy

    counted: dict[str, int] = defaultdict(int)

    class Counting(FaultProxy):
        def forward(self, *request: Any) -> tuple[int, list[tuple[str, str]], bytes]:
            answer = super().forward(*request)
            counted["requests"] += 1
            counted["bytes"] += len(answer[2])
            return answer

    with Counting(url, rate=0, stall_s=0).serving() as proxied:
        yield proxied, counted


# --- the table --------------------------------------------------------------------------------------------------------


def _print(
    rows: dict[tuple[str, int], list[Row]],
    traffic: dict[str, dict[str, float] | None],
    missing: list[str],
    options: argparse.Namespace,
) -> None:
    medians = {
        key: {what: statistics.median(row[what] for row in found) for what in found[0]} for key, found in rows.items()
    }
    if options.json:
        found = [{"name": name, "workers": workers, **row} for (name, workers), row in medians.items()]
        print(json.dumps({"rows": found, "s3_per_sample": traffic, "not_installed": missing}, indent=2))
        return
    print(f"{'':<34} {'workers':>7} {'per CPU s':>10} {'per s':>7} {'of decode':>10} {'MiB':>6}")
    for (name, workers), row in sorted(medians.items(), key=lambda item: (item[0][1], -item[1]["per_cpu_s"])):
        figures = f"{row['per_cpu_s']:10.0f} {row['per_s']:7.0f} {row['of_decode']:10.2f} {row['mib']:6.0f}"
        print(f"{name:<34} {workers:7d} {figures}")
    for name, per_sample in traffic.items():
        if per_sample:
            print(f"{name}: {per_sample['requests']:.3f} requests and {per_sample['bytes'] / 1e3:.1f} kB a sample")
    for name in missing:
        print(f"{name}: not installed: pip install webdataset mosaicml-streaming litdata torchvision")


if __name__ == "__main__":
    main()
