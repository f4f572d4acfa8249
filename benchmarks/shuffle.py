"""Quality of a loader's shuffling of shards: ours compared with a perfect permutation and three peers.

    python benchmarks/shuffle.py [--peers PYTHON] [--samples 128000] [--shards 240] [--epochs 4] [--json]

The samples are numbers, with the sample and shard counts of a tenth of ImageNet. Every peer writes them in its own
format and reads them with the shuffling of its documentation. Two figures compare the order of consecutive epochs:

* *moved*: how far a sample moves, as a fraction of the epoch. Independent permutations move it by a third.
* *together*: how often a sample's successor in the epoch before is within 100 places again. By chance that is 200 of an
  epoch's places.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
Orders = npt.NDArray[np.int64]
"""Sample numbers in the order of loading, [epochs, samples]."""
Shape = argparse.Namespace
"""``samples``, ``shards`` and ``epochs``."""


def main() -> None:
    options = _arguments()
    if options.child:
        np.save(options.folder / "orders.npy", PEERS[options.child](options, options.folder))
        return
    orders = {"a perfect permutation": _perfect(options), "ours": _ours(options)}
    orders |= {name: found for name in PEERS if (found := _peer(name, options)) is not None}
    rows = [_row(name, found) for name, found in orders.items()]
    print(json.dumps(rows, indent=2) if options.json else _table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="the interpreter that has the peers")
    parser.add_argument("--samples", type=int, default=128_000)
    parser.add_argument("--shards", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- what is measured -------------------------------------------------------------------------------------------------


def _row(name: str, orders: Orders) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from shuffle_quality import shuffle_quality

    moved, together = shuffle_quality(list(orders))
    return {"name": name, "moved": moved, "together": together}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{row['name']:<24} {row['moved']:7.3f} {row['together']:9.4f}" for row in rows]
    return "\n".join([f"{'':<24} {'moved':>7} {'together':>9}", *lines])


# --- the contenders ---------------------------------------------------------------------------------------------------


def _perfect(shape: Shape) -> Orders:
    rng = np.random.default_rng(1)
    return np.stack([rng.permutation(shape.samples) for _ in range(shape.epochs)])


def _ours(shape: Shape) -> Orders:
    from mtl_cloud.train.data.sampler import shard_order

    # Ours are written in random order.
    shards = np.random.default_rng(0).permutation(np.arange(shape.samples) * shape.shards // shape.samples)
    return np.stack([shard_order(shards, seed=1, epoch=epoch) for epoch in range(shape.epochs)])


def _peer(name: str, options: argparse.Namespace) -> Orders | None:
    """The peer's orders, from a new process. Prints a message and returns None if it is not installed or fails."""
    with tempfile.TemporaryDirectory() as folder:
        shape = [f"--{what}={getattr(options, what)}" for what in ("samples", "shards", "epochs")]
        command = [options.peers, __file__, "--child", name, "--folder", folder, *shape]
        # litdata deletes the content of its default folders, unless others are set.
        environ = os.environ | {f"DATA_OPTIMIZER_{what}FOLDER": f"{folder}/own" for what in ("CACHE_", "DATA_CACHE_")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environ)
        if done.returncode:
            print(f"{name}: {(done.stderr.splitlines() or ['no output'])[-1]}", file=sys.stderr)
            return None
        orders: Orders = np.load(Path(folder) / "orders.npy")
        return orders


def webdataset(shape: Shape, folder: Path) -> Orders:
    """Reads shards in random order, each from start to end, through a buffer of 1,000."""
    import webdataset

    for shard, numbers in enumerate(_parts(shape)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in numbers:
                info = tarfile.TarInfo(f"{number:08d}.id")
                info.size = 8
                tar.addfile(info, io.BytesIO(b"%08d" % number))
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).to_tuple("id")
    return _read(shape, lambda: (int(data) for (data,) in dataset))


def mosaicml_streaming(shape: Shape, folder: Path) -> Orders:
    from streaming import MDSWriter, StreamingDataset

    limit = 20 * shape.samples // shape.shards  # a sample takes about 20 bytes
    with MDSWriter(columns={"id": "int"}, out=str(folder / "mds"), size_limit=limit) as writer:
        for number in range(shape.samples):
            writer.write({"id": number})
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=64)
    return _read(shape, lambda: (sample["id"] for sample in dataset))


def litdata(shape: Shape, folder: Path) -> Orders:
    import litdata

    size, parts = shape.samples // shape.shards, [part.tolist() for part in _parts(shape)]
    litdata.optimize(_each, parts, str(folder / "chunks"), chunk_size=size, num_workers=1, reorder_files=False)
    dataset = litdata.StreamingDataset(str(folder / "chunks"), shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=64)
    return _read(shape, lambda: (number for batch in loader for number in batch.tolist()))


PEERS: dict[str, Callable[[Shape, Path], Orders]] = {
    "webdataset": webdataset,
    "mosaicml-streaming": mosaicml_streaming,
    "litdata": litdata,
}


def _each(numbers: list[int]) -> Iterator[int]:
    yield from numbers


def _parts(shape: Shape) -> Iterator[npt.NDArray[np.int64]]:
    yield from np.array_split(np.arange(shape.samples), shape.shards)


def _read(shape: Shape, epoch: Callable[[], Iterator[int]]) -> Orders:
    return np.stack([np.fromiter(itertools.islice(epoch(), shape.samples), np.int64) for _ in range(shape.epochs)])


if __name__ == "__main__":
    main()
