"""Opening the splits of a job: tasks, limits, joining, bad samples, and no image in both splits."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from dataset_harness import jpeg, voc_annotation, voc_object, write_cifar_pack
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import real

from mtl_cloud.catalog.datasets import DATASETS
from mtl_cloud.datasets import (
    DatasetInfo,
    JointDataset,
    Sample,
    assert_disjoint,
    open_dataset,
    open_splits,
)
from mtl_cloud.datasets.base import Dataset, HintFor
from mtl_cloud.errors import DatasetError
from mtl_cloud.jobspec.job import DatasetSpec
from mtl_cloud.tasks import TASKS, Task

DIGITS = tuple("0123456789")


class Listed:
    """A dataset of keys; the pixels of an image encode its key."""

    def __init__(
        self,
        keys: list[str],
        classes: dict[Task, tuple[str, ...]] | None = None,
        *,
        name: str = "listed",
        multi_label: bool = False,
    ) -> None:
        self.keys = keys
        self.info = DatasetInfo(name, "all", {"classification": DIGITS} if classes is None else classes, multi_label)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=self.keys[index], image=np.full((1, 1, 3), index, dtype=np.uint8), classification=index)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        return self[index]

    def key(self, index: int) -> str:
        return self.keys[index]

    def labels(self, index: int) -> frozenset[Task]:
        return frozenset(self.info.tasks)


def voc(root: Path, **fields: Any) -> DatasetSpec:
    return DatasetSpec(name="voc", uri=str(root), **fields)


def test_every_dataset_that_a_job_may_name_can_be_opened() -> None:
    assert sorted(DATASETS) == sorted(get_args(DatasetSpec.model_fields["name"].annotation))


def test_a_whole_dataset_is_opened_as_it_is(voc_root: Path) -> None:
    train, val = open_splits(voc(voc_root))
    assert [train.key(i) for i in range(len(train))] == ["VOC2012/a", "VOC2012/b"]
    assert [val.key(i) for i in range(len(val))] == ["VOC2012/c"]
    assert train.info.classes == val.info.classes
    assert train.info.multi_label


def test_only_the_chosen_tasks_are_labelled_and_only_such_images_are_left(voc_root: Path) -> None:
    dataset = open_dataset(voc(voc_root, tasks=("segmentation",)), "train")
    assert (len(dataset), dataset.key(0), dataset.labels(0)) == (1, "VOC2012/a", frozenset({"segmentation"}))
    assert dataset.info.tasks == ("segmentation",)
    assert (dataset[0].classification, dataset[0].detection) == (None, None)
    assert dataset[0].segmentation is not None


def test_a_task_that_the_dataset_does_not_label_is_refused(imagenet_root: Path) -> None:
    spec = DatasetSpec(name="imagenet", uri=str(imagenet_root), tasks=("classification", "detection"))
    with pytest.raises(DatasetError, match="imagenet train has no labels for detection") as caught:
        open_dataset(spec, "train")
    assert "it labels classification" in str(caught.value.hint)


def test_a_limit_takes_samples_from_the_whole_split_and_so_of_every_class(imagenet_root: Path) -> None:
    spec = DatasetSpec(name="imagenet", uri=str(imagenet_root), max_train_samples=2, max_val_samples=1)
    train, val = open_splits(spec)
    assert [train.key(i) for i in range(len(train))] == [f"n0000000{c}/n0000000{c}_1.JPEG" for c in (1, 2)]
    assert len(val) == 1


@pytest.mark.parametrize("limit", [1, 5, 511, 512, 10_000])
def test_a_limit_is_kept_and_takes_each_sample_once(limit: int) -> None:
    dataset = open_dataset(DatasetSpec(name="embedded", max_val_samples=limit), "val")
    keys = [dataset.key(i) for i in range(len(dataset))]
    assert len(set(keys)) == len(keys) == min(limit, 512)
    assert keys == sorted(keys)


@pytest.mark.parametrize("skip", ["fail", "skip"])
def test_every_opened_dataset_can_be_sent_to_a_worker(voc_root: Path, skip: str) -> None:
    spec = voc(voc_root, tasks=("detection",), on_bad_sample=skip)
    dataset = open_splits(spec, DatasetSpec(name="embedded", tasks=("segmentation",)))[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert [again[i].key for i in (0, 1, 2)] == ["VOC2012/a", "VOC2012/b", "embedded/train/00000"]


# --- leaks ---------------------------------------------------------------------------------------------------------


def test_splits_that_share_an_image_are_refused(voc_root: Path) -> None:
    """A detection list that contains a segmentation validation image, as VOC 2012's trainval does."""
    (voc_root / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\n")
    leaky = {"train": "trainval", "val": "val"}
    with pytest.raises(
        DatasetError, match=r"1 images of voc are in both splits, trainval and val: VOC2012/c"
    ) as caught:
        open_splits(voc(voc_root, splits=leaky))
    assert "splits" in str(caught.value.hint)


def test_a_leak_between_two_datasets_of_a_joint_job_is_found(voc_root: Path) -> None:
    """Each of the two is clean: boxes from trainval without validation overlap, masks from train and val."""
    (voc_root / "ImageSets/Main/trainval.txt").write_text("b\nc\n")
    (voc_root / "ImageSets/Main/mini.txt").write_text("a\n")
    boxes = voc(voc_root, tasks=("classification", "detection"), splits={"train": "trainval", "val": "mini"})
    masks = voc(voc_root, tasks=("segmentation",))
    for spec in (boxes, masks):
        open_splits(spec)
    with pytest.raises(DatasetError, match=r"2 images of voc\+voc are in both splits.*: VOC2012/c, VOC2012/a"):
        open_splits(boxes, masks)


@pytest.mark.parametrize(("voc_photographs", "val"), [("shipped", 24), real(249)], indirect=["voc_photographs"])
def test_trainval_leaks_into_val_and_train_does_not(voc_photographs: Path, val: int) -> None:
    open_splits(voc(voc_photographs))
    with pytest.raises(DatasetError, match=f"{val} images of voc are in both splits"):
        open_splits(voc(voc_photographs, splits={"train": "trainval", "val": "val"}))


@settings(deadline=None)
@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_disjointness_is_that_of_the_keys(train: set[int], val: set[int]) -> None:
    def check() -> None:
        assert_disjoint(*(Listed([str(key) for key in sorted(keys)]) for keys in (train, val)))

    if common := sorted(train & val):
        with pytest.raises(DatasetError, match=f"^{len(common)} images of listed .*: {common[0]}"):
            check()
    else:
        check()


def test_a_pack_and_the_originals_of_the_same_images_leak(cifar_root: Path) -> None:
    """CIFAR-10's keys name the image and not the file, so a lossy copy cannot hide one."""
    write_cifar_pack(cifar_root / "cifar10_full_jpeg.npz")
    spec = DatasetSpec(name="cifar10", uri=str(cifar_root), splits={"train": "train_jpeg", "val": "train"})
    with pytest.raises(DatasetError, match="10 images of cifar10 are in both splits, train and train: data_batch_1/0"):
        open_splits(spec)


def test_validation_must_label_what_is_trained(voc_root: Path) -> None:
    (voc_root / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(DatasetError, match="the splits train and val of voc do not label the same classes"):
        open_splits(voc(voc_root))


# --- joint datasets ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
def test_a_joint_dataset_is_the_concatenation_of_its_parts(lengths: list[int]) -> None:
    parts = [Listed([f"{which}/{i}" for i in range(length)]) for which, length in enumerate(lengths)]
    joint: Dataset = JointDataset(parts)
    everything = [(which, i) for which, length in enumerate(lengths) for i in range(length)]
    assert len(joint) == len(everything)
    assert [JointDataset(parts).locate(i) for i in range(len(joint))] == everything
    assert [joint.key(i) for i in range(len(joint))] == [f"{which}/{i}" for which, i in everything]
    assert [joint[i].key for i in range(len(joint))] == [joint.key(i) for i in range(len(joint))]
    for index in (-1, len(joint)):
        with pytest.raises(IndexError):
            joint[index]


def test_a_joint_dataset_labels_what_its_parts_label(voc_root: Path, imagenet_root: Path) -> None:
    pictures = DatasetSpec(name="imagenet", uri=str(imagenet_root))
    train, _ = open_splits(pictures, voc(voc_root, tasks=("detection", "segmentation")))
    assert train.info.tasks == TASKS
    assert train.info.classes["classification"] == ("n00000001", "n00000002")
    assert len(train.info.classes["segmentation"]) == 21
    assert not train.info.multi_label
    assert train.info.name == "imagenet+voc"
    assert [train.labels(i) for i in (0, 4, 5)] == [{"classification"}, {"detection", "segmentation"}, {"detection"}]
    assert (train[4].classification, train[0].detection) == (None, None)


def test_parts_with_equal_classes_merge() -> None:
    joint = JointDataset([Listed(["a"]), Listed(["b"])])
    assert joint.info.classes == {"classification": DIGITS}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Listed(["b"], {"classification": DIGITS[:3]}, name="other"), r"with other classes \(10 and 3\)"),
        (Listed(["b"], name="other", multi_label=True), "once as one class and once as a set of classes"),
    ],
)
def test_parts_that_label_a_task_differently_are_refused(other: Listed, message: str) -> None:
    with pytest.raises(DatasetError, match=f"listed and other both label classification, {message}") as caught:
        JointDataset([Listed(["a"]), other])
    assert "give each dataset its own `tasks:`" in str(caught.value.hint)


# --- bad samples ---------------------------------------------------------------------------------------------------


def test_a_bad_sample_ends_the_run_unless_told_otherwise(voc_root: Path) -> None:
    (voc_root / "JPEGImages/a.jpg").write_bytes(jpeg()[:100])
    with pytest.raises(DatasetError, match=r"a\.jpg: damaged"):
        open_dataset(voc(voc_root), "train")[0]


def test_a_bad_sample_is_replaced_by_the_next_good_image_without_labels(voc_root: Path) -> None:
    (voc_root / "JPEGImages/a.jpg").write_bytes(jpeg()[:100])
    dataset = open_dataset(voc(voc_root, on_bad_sample="skip"), "train")
    stand_in, good = dataset[0], dataset[1]
    assert (stand_in.replaces, stand_in.key, good.replaces) == ("VOC2012/a", "VOC2012/b", None)
    assert np.array_equal(stand_in.image, good.image)
    assert (stand_in.classification, stand_in.detection, stand_in.segmentation) == (None, None, None)
    assert (dataset.key(0), len(dataset)) == ("VOC2012/a", 2)


def test_the_replacement_of_the_last_sample_is_the_first(voc_root: Path) -> None:
    (voc_root / "Annotations/b.xml").write_text(voc_annotation(voc_object("dog", 3, 5, 99, 24)))
    sample = open_dataset(voc(voc_root, on_bad_sample="skip"), "train")[1]
    assert (sample.key, sample.replaces) == ("VOC2012/a", "VOC2012/b")


def test_a_dataset_without_a_good_sample_ends_the_run(voc_root: Path) -> None:
    for name in ("a", "b"):
        (voc_root / f"JPEGImages/{name}.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"voc train: too many consecutive samples are bad; the first: .*a\.jpg"):
        open_dataset(voc(voc_root, on_bad_sample="skip"), "train")[0]


# --- locations of data -----------------------------------------------------------------------------------------------


def test_a_uri_may_be_a_file_url_with_escapes(voc_root: Path) -> None:
    spaced = voc_root.parent.rename(voc_root.parent.with_name("VOC devkit"))
    assert len(open_dataset(DatasetSpec(name="voc", uri=spaced.as_uri()), "train")) == 2


def test_remote_data_must_be_prepared_first() -> None:
    with pytest.raises(DatasetError, match=r"^memory://voc: no prepared dataset there \(no manifest.json\)") as caught:
        open_dataset(DatasetSpec(name="voc", uri="memory://voc"), "train")
    assert "mtl-cloud data prepare" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["voc", "cifar10", "imagenet"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"{tmp_path}/absent: no such file or folder"):
        open_dataset(DatasetSpec(name=name, uri=str(tmp_path / "absent")), "train")
