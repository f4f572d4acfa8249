"""Small datasets in the layouts of the real ones, for tests that damage them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_harness import (
    jpeg,
    tar_bytes,
    voc_annotation,
    voc_object,
    write_cifar_batches,
    write_devkit,
    write_mask,
    write_tar,
)

from mtl_cloud.datasets import Dataset
from mtl_cloud.datasets.formats.cifar10 import open_cifar10
from mtl_cloud.datasets.formats.imagenet import open_imagenet
from mtl_cloud.datasets.formats.voc import open_voc
from mtl_cloud.datasets.preparation.prepare import Options, prepare
from mtl_cloud.datasets.preparation.source import Source
from mtl_cloud.datasets.preparation.sources import CifarSource, ImageNetSource, VocSource
from mtl_cloud.storage import open_storage

KINDS: Mapping[str, tuple[str, Callable[[str, str], Any], Callable[[Any], Source], tuple[str, str]]] = {
    "cifar10": ("cifar_root", open_cifar10, CifarSource.of, ("train", "test")),
    "imagenet": ("imagenet_tars", open_imagenet, ImageNetSource, ("train", "val")),
    "voc": ("voc_root", open_voc, VocSource, ("train", "val")),
}
"""Name -> fixture of the original, opener, maker of a source, splits."""

ALIASES = {"held_out": "train"}
Prepared = tuple[str, Path, Callable[[str], Dataset]]


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """VOC2012 with two training images (one with a mask) and one validation image with a mask; all show a dog."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate(("a", "b", "c")):
        (root / f"JPEGImages/{name}.jpg").write_bytes(jpeg(seed=seed))
        (root / f"Annotations/{name}.xml").write_text(voc_annotation(voc_object("dog", 3, 5, 20, 24)))
    for name in ("a", "c"):
        write_mask(root / f"SegmentationClass/{name}.png", np.full((24, 32), 12))
    for kind, split, names in [
        ("Main", "train", "a b"), ("Main", "val", "c"), ("Segmentation", "train", "a"), ("Segmentation", "val", "c"),
    ]:  # fmt: skip
        (root / f"ImageSets/{kind}/{split}.txt").write_text("\n".join(names.split()) + "\n")
    return root


@pytest.fixture
def imagenet_root(tmp_path: Path) -> Path:
    """ILSVRC2012 in folders: two classes, two training images and one validation image each."""
    root = tmp_path / "ILSVRC2012"
    for seed, wnid in enumerate(("n00000001", "n00000002")):
        for folder in ("train", "val"):
            (root / folder / wnid).mkdir(parents=True)
        for number in (1, 2):
            (root / f"train/{wnid}/{wnid}_{number}.JPEG").write_bytes(jpeg(seed=10 * seed + number))
        (root / f"val/{wnid}/ILSVRC2012_val_0000000{seed + 1}.JPEG").write_bytes(jpeg(seed=seed))
    return root


@pytest.fixture
def cifar_root(tmp_path: Path) -> Path:
    """Five training batches and a test batch of 20 rows each."""
    root = tmp_path / "cifar-10-batches-py"
    write_cifar_batches(root)
    return root


@pytest.fixture
def pack_as_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], Path]:
    """Packs ``train/`` and ``val/`` as the original tars: a tar with one tar per class, and a flat one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def pack(root: Path, target: Path) -> Path:
        target.mkdir()
        classes = sorted((root / "train").iterdir())
        inner = {f"{c.name}.tar": tar_bytes({f.name: f.read_bytes() for f in c.iterdir()}) for c in classes}
        write_tar(target / "ILSVRC2012_img_train.tar", inner)
        write_tar(target / "ILSVRC2012_img_val.tar", {f.name: f.read_bytes() for f in (root / "val").glob("*/*")})
        return target

    return pack


@pytest.fixture
def imagenet_tars(imagenet_root: Path, pack_as_tars: Callable[[Path, Path], Path], tmp_path: Path) -> Path:
    """``imagenet_root`` as tars, with the devkit's files."""
    folder = pack_as_tars(imagenet_root, tmp_path / "tars")
    write_devkit(folder)
    return folder


@pytest.fixture(params=list(KINDS))
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> Prepared:
    """Name, folder, and a function from a split to the plain dataset."""
    fixture, opener, make, splits = KINDS[request.param]
    root = str(request.getfixturevalue(fixture))
    sources = {split: make(opener(root, split)) for split in splits}
    prepare(
        request.param,
        sources,
        open_storage(tmp_path / "prepared"),
        Options(shard_bytes=60_000 if request.param == "cifar10" else 8000),
        aliases=ALIASES,
    )
    return request.param, tmp_path / "prepared", lambda split: opener(root, split)
