"""The contract of datasets, tested on all of them and on their wrappers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_harness import write_cifar_pack
from narrowing import present

from mtl_cloud.datasets import IGNORE, Dataset, Sample, open_dataset, open_splits
from mtl_cloud.jobspec.job import DatasetSpec
from mtl_cloud.tasks import TASKS

Fixture = Callable[[str], Path]


def voc(fixture: Fixture, **fields: Any) -> DatasetSpec:
    return DatasetSpec(name="voc", uri=str(fixture("voc_root")), **fields)


def cifar_pack(fixture: Fixture) -> DatasetSpec:
    path = fixture("tmp_path") / "pack.npz"
    write_cifar_pack(path)
    return DatasetSpec(name="cifar10", uri=str(path))


SPECS: dict[str, Callable[[Fixture], DatasetSpec]] = {
    "voc": voc,
    "cifar10": lambda fixture: DatasetSpec(name="cifar10", uri=str(fixture("cifar_root"))),
    "cifar10_pack": cifar_pack,
    "imagenet": lambda fixture: DatasetSpec(name="imagenet", uri=str(fixture("imagenet_root"))),
    "imagenet_tars": lambda fixture: DatasetSpec(name="imagenet", uri=str(fixture("imagenet_tars"))),
    "embedded": lambda _fixture: DatasetSpec(name="embedded", max_train_samples=4),
    "selection": lambda fixture: voc(fixture, tasks=("detection",), max_train_samples=1),
    "skipping": lambda fixture: voc(fixture, on_bad_sample="skip"),
}


@pytest.fixture(params=[*SPECS, "joint"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    """A train split of each kind."""
    fixture = request.getfixturevalue
    if request.param == "joint":
        return open_splits(SPECS["imagenet"](fixture), voc(fixture, tasks=("detection", "segmentation")))[0]
    return open_dataset(SPECS[request.param](fixture), "train")


def test_key_and_labels_are_those_of_the_sample(dataset: Dataset) -> None:
    for i in range(len(dataset)):
        sample = dataset[i]
        assert dataset.key(i) == sample.key
        assert dataset.labels(i) == {task for task in TASKS if getattr(sample, task) is not None}
        assert dataset.labels(i) <= set(dataset.info.tasks)
        assert sample.replaces is None


def test_keys_are_unique(dataset: Dataset) -> None:
    assert len({dataset.key(i) for i in range(len(dataset))}) == len(dataset) > 0


def test_images_and_labels_have_the_promised_shapes_and_ranges(dataset: Dataset) -> None:
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample.image.dtype == np.uint8
        assert (sample.image.ndim, sample.image.shape[2]) == (3, 3)
        assert sample.image.flags.c_contiguous
        assert sample.image.flags.writeable
        for task in dataset.labels(i):
            CHECKS[task](sample, len(dataset.info.classes[task]), multi_label=dataset.info.multi_label)


def check_classification(sample: Sample, classes: int, *, multi_label: bool) -> None:
    if multi_label:
        assert isinstance(sample.classification, np.ndarray)
        assert sample.classification.shape == (classes,)
        assert sample.classification.dtype == np.float32
        assert set(sample.classification.tolist()) <= {-1, 0, 1}
    else:
        assert type(sample.classification) is int
        assert 0 <= sample.classification < classes


def check_detection(sample: Sample, classes: int, *, multi_label: bool) -> None:
    boxes, (height, width) = present(sample.detection), sample.image.shape[:2]
    left, top, right, bottom = boxes.xyxy.T
    assert [boxes.xyxy.dtype, boxes.classes.dtype, boxes.difficult.dtype] == [np.float32, np.int64, np.bool_]
    assert boxes.classes.shape == boxes.difficult.shape == left.shape
    assert ((left >= 0) & (left < right) & (right <= width)).all()
    assert ((top >= 0) & (top < bottom) & (bottom <= height)).all()
    assert ((boxes.classes >= 0) & (boxes.classes < classes)).all()


def check_segmentation(sample: Sample, classes: int, *, multi_label: bool) -> None:
    mask = present(sample.segmentation)
    assert mask.shape == sample.image.shape[:2]
    assert mask.dtype == np.uint8
    assert set(np.unique(mask).tolist()) <= {*range(classes), IGNORE}


CHECKS = {
    "classification": check_classification,
    "detection": check_detection,
    "segmentation": check_segmentation,
}


def test_a_copy_in_a_loader_worker_gives_the_same_samples(dataset: Dataset) -> None:
    """Pickled before and after the first read, when files are open."""
    before = pickle.loads(pickle.dumps(dataset))
    first = dataset[0]
    after = pickle.loads(pickle.dumps(dataset))
    for copy in (before, after):
        assert np.array_equal(copy[0].image, first.image)
        assert copy.info == dataset.info
