"""Small images, annotations and archives in the layouts of the real datasets, and wrappers that modify datasets."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtl_cloud.datasets.base import Dataset, DatasetInfo, HintFor, Sample, full_decode
from mtl_cloud.tasks import Task

OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"


@dataclass(frozen=True)
class Altered:
    """A wrapper around another dataset; subclasses override ``load``."""

    dataset: Dataset

    @property
    def info(self) -> DatasetInfo:
        return self.dataset.info

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, full_decode)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        return self.dataset.load(index, hint_for)

    def key(self, index: int) -> str:
        return self.dataset.key(index)

    def labels(self, index: int) -> frozenset[Task]:
        return self.dataset.labels(index)


def jpeg(width: int = 32, height: int = 24, mode: str = "RGB", seed: int = 0) -> bytes:
    """A valid JPEG with smooth random colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, len(mode)), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise.squeeze(), mode).resize((width, height)).save(file, "JPEG", quality=95)
    return file.getvalue()


def voc_object(name: str, xmin: float, ymin: float, xmax: float, ymax: float, *, difficult: int = 0) -> str:
    """An ``object`` element, in VOC's coordinates."""
    sides = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    return OBJECT.format(name, difficult, "".join(f"<{k}>{v}</{k}>" for k, v in sides.items()))


def voc_annotation(*objects: str, width: int = 32, height: int = 24) -> str:
    """An annotation file's text."""
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def write_mask(path: Path, mask: np.ndarray, mode: str = "P") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).convert(mode).save(path)


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """An uncompressed tar of files, in the given order."""
    path.write_bytes(tar_bytes(members))


def tar_bytes(members: Mapping[str, bytes]) -> bytes:
    """The same in memory."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def cifar_batch(name: str = "data_batch_1", labels: object = None, rows: int = 20, **changes: object) -> bytes:
    """A pickled batch of noise, in the pickle protocol of the original files."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 3072), dtype=np.uint8)
    labels = [i % 10 for i in range(rows)] if labels is None else labels
    said = "testing batch 1 of 1" if name == "test_batch" else f"training batch {name[-1]} of 5"
    return pickle.dumps({"batch_label": said, "labels": labels, "data": pixels} | changes, protocol=2)


def write_cifar_batches(root: Path) -> None:
    """Five training batches and a test batch of 20 rows each."""
    root.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (root / name).write_bytes(cifar_batch(name))


def write_cifar_pack(path: Path, split: str = "train", rows: int = 10) -> None:
    """The same small JPEG ``rows`` times, with the classes in turn."""
    image = np.frombuffer(jpeg(32, 32), np.uint8)
    arrays: dict[str, Any] = {"jpeg": np.tile(image, rows), "labels": np.arange(rows) % 10}
    arrays["offsets"] = np.arange(rows + 1) * len(image)
    np.savez(path, **{f"{split}_{name}": value for name, value in arrays.items()})


def write_devkit(folder: Path, ids: str = "2 1", mapping: str = "n00000001 2 cat_fish\nn00000002 1 dog\n") -> None:
    """Ground truth for ``imagenet_root``: image 1 belongs to the first class, whose devkit id is 2."""
    folder.mkdir(exist_ok=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(ids.replace(" ", "\n") + "\n")
    (folder / "map_clsloc.txt").write_text(mapping)
