"""Small prepared datasets of every kind, in folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mtl_cloud.datasets import Dataset
from mtl_cloud.datasets.cifar10 import open_cifar10
from mtl_cloud.datasets.imagenet import open_imagenet
from mtl_cloud.datasets.shards.prepare import Options, prepare
from mtl_cloud.datasets.shards.source import Source
from mtl_cloud.datasets.shards.sources import CifarSource, ImageNetSource, VocSource
from mtl_cloud.datasets.voc import open_voc
from mtl_cloud.storage import open_storage

KINDS: Mapping[str, tuple[str, Callable[[str, str], Any], Callable[[Any], Source], tuple[str, str]]] = {
    "cifar10": ("cifar_root", open_cifar10, CifarSource.of, ("train", "test")),
    "imagenet": ("imagenet_tars", open_imagenet, ImageNetSource, ("train", "val")),
    "voc": ("voc_root", open_voc, VocSource, ("train", "val")),
}
"""Name -> fixture of the original, opener, maker of a source, splits."""

Prepared = tuple[str, Path, Callable[[str], Dataset]]


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


ALIASES = {"held_out": "train"}
