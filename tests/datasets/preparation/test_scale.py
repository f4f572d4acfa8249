"""Sizes of the real ImageNet: memory, time and throughput. Figures are printed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from dataset_harness import jpeg, write_devkit

from mtl_cloud.datasets.base import DatasetInfo
from mtl_cloud.datasets.shards.format import FileEntry, row_dtype
from mtl_cloud.datasets.shards.index_table import encode_table, open_table
from mtl_cloud.storage import open_storage

IMAGENET = 1_281_167
"""Training images of ILSVRC2012."""

_PREPARE = """
import json, resource, sys
from mtl_cloud import cli
code = cli.main(["data", "prepare", "imagenet", sys.argv[1], sys.argv[2], "--split", "train", "--workers", "1"])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"code": code, "cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}))
"""


def write_tar_of_tars(root: Path, classes: int, images: int) -> None:
    """Writes small JPEGs with different bytes directly to disk."""
    root.mkdir()
    image = jpeg(48, 32)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for c in range(classes):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as inner:
                for i in range(images):
                    data = image + b"%08d" % (c * images + i)  # after the image's end, where decoders do not look
                    info = tarfile.TarInfo(f"n{c:08d}_{i}.JPEG")
                    info.size = len(data)
                    inner.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(f"n{c:08d}.tar")
            info.size = file.tell()
            file.seek(0)
            outer.addfile(info, file)
    write_devkit(root)


def prepare_in_a_process(root: Path, target: Path) -> tuple[float, float]:
    """Processor time, s, and peak memory, MiB."""
    environ = os.environ | {"XDG_CACHE_HOME": str(target) + ".cache"}
    command = [sys.executable, "-c", _PREPARE, str(root), str(target)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0
    return result["cpu_s"], result["peak_mib"]


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_200_000_small_members(tmp_path: Path) -> None:
    """Ten times the members cost only their lines in the plan (under 1.5 KiB each), for any image size."""
    write_tar_of_tars(tmp_path / "few", classes=200, images=100)
    write_tar_of_tars(tmp_path / "many", classes=200, images=1000)
    _, few_mib = prepare_in_a_process(tmp_path / "few", tmp_path / "few.out")
    cpu_s, many_mib = prepare_in_a_process(tmp_path / "many", tmp_path / "many.out")
    print(f"\n200,000 members: {200_000 / cpu_s:,.0f} a core-second, {many_mib:.0f} MiB; 20,000: {few_mib:.0f} MiB")
    assert many_mib - few_mib < 180_000 * 1.5 / 1024
    assert (tmp_path / "many.out/train.index.npy").stat().st_size < 200_000 * 60


@pytest.mark.slow
def test_the_index_of_all_imagenet_is_small_and_opens_at_once(tmp_path: Path) -> None:
    """It is memory-mapped: another process adds no memory, and reading one row reads a page."""
    info = DatasetInfo("imagenet", "train", {"classification": tuple(map(str, range(1000)))})
    rows = np.zeros(IMAGENET, row_dtype(info, len("n01440764/n01440764_10026.JPEG")))
    rows["crc64nvme"] = np.random.default_rng(0).integers(0, 2**63, IMAGENET)
    storage, data = open_storage(tmp_path), encode_table(rows)
    storage.write("train.index.npy", data)
    start = time.process_time()  # so that other processes do not count
    table = open_table(storage, FileEntry.of("train.index.npy", data))
    assert table.rows["crc64nvme"][-1] == rows["crc64nvme"][-1]
    checked = time.process_time() - start
    start = time.process_time()
    assert type(table)(table.path).rows["crc64nvme"][1000] == rows["crc64nvme"][1000]
    mapped = time.process_time() - start
    print(f"\n{IMAGENET:,} rows: {len(data) / 2**20:.1f} MiB; checked {checked:.3f} s, mapped {mapped:.4f} s")
    assert len(data) < IMAGENET * 60
    assert checked < 2
    assert mapped < 0.1
