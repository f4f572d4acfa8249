"""CIFAR-10: the original pickles and the JPEG pack, compared with plain unpickling, published counts and each other."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_harness import cifar_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import REAL, real

from mtl_cloud.datasets.formats.cifar10 import CLASSES, open_cifar10
from mtl_cloud.datasets.formats.pickles import loads
from mtl_cloud.errors import DatasetError


@pytest.mark.filterwarnings("ignore:.*numpy.core:DeprecationWarning")  # from the reference reader
@pytest.mark.filterwarnings("ignore:dtype.. align should be passed")  # the same
@pytest.mark.parametrize("split", ["train", "test"])
def test_batches_are_read_as_plain_unpickling_reads_them(cifar_photographs: Path, split: str) -> None:
    dataset = open_cifar10(str(cifar_photographs), split)
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    samples = iter(dataset[i] for i in range(len(dataset)))
    for name in names:
        with (cifar_photographs / "cifar-10-batches-py" / name).open("rb") as file:
            reference = pickle.load(file, encoding="latin1")
        for row, (label, pixels) in enumerate(zip(reference["labels"], reference["data"], strict=True)):
            sample = next(samples)
            assert sample.key == f"{name}/{row}"
            assert sample.classification == label
            assert np.array_equal(sample.image, np.dstack(list(pixels.reshape(3, 32, 32))))
    assert next(samples, None) is None


@pytest.mark.parametrize("cifar_photographs", [REAL], indirect=True)
def test_the_pack_has_all_images_in_their_published_order(cifar_photographs: Path) -> None:
    train, test = (open_cifar10(str(cifar_photographs), f"{split}_jpeg") for split in ("train", "test"))
    labels = train.content.labels
    assert np.bincount(labels).tolist() == [5000] * 10
    assert np.bincount(test.content.labels).tolist() == [1000] * 10
    assert np.bincount(labels[:10000]).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert (train.key(0), train.key(49_999), test.key(3)) == ("data_batch_1/0", "data_batch_5/9999", "test_batch/3")


@pytest.mark.parametrize(
    ("cifar_photographs", "split", "shared"),
    [("shipped", "train", 200), ("shipped", "test", 500), real("train", 5085), real("test", 1017)],
    indirect=["cifar_photographs"],
)
def test_an_image_is_the_same_under_the_same_key_in_both_forms(
    cifar_photographs: Path, split: str, shared: int
) -> None:
    """Every lossless image that both forms have: it has the label of its JPEG, and a PSNR above 20 dB."""
    lossless, lossy = (open_cifar10(str(cifar_photographs), name) for name in (split, f"{split}_jpeg"))
    where = {lossy.key(i): i for i in range(len(lossy))}
    in_both = [i for i in range(len(lossless)) if lossless.key(i) in where]
    assert len(in_both) == shared
    for i in in_both[::7]:
        one, other = lossless[i], lossy[where[lossless.key(i)]]
        error = np.mean((one.image.astype(float) - other.image) ** 2)
        assert one.classification == other.classification
        assert 10 * np.log10(255**2 / error) > 20


@pytest.mark.parametrize("cifar_photographs", [REAL], indirect=True)
def test_the_class_names_are_those_of_the_real_files(cifar_photographs: Path) -> None:
    meta = loads((cifar_photographs / "cifar-10-batches-py/batches.meta").read_bytes(), "batches.meta")
    assert tuple(meta["label_names"]) == CLASSES
    with np.load(cifar_photographs / "cifar10_full_jpeg.npz") as pack:
        assert tuple(pack["label_names"].tolist()) == CLASSES


def test_a_loader_worker_is_sent_the_path_and_not_the_pixels(cifar_root: Path) -> None:
    dataset = open_cifar10(str(cifar_root), "train")
    sent = pickle.dumps(dataset)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)[7].image, dataset[7].image)


def test_val_means_test_and_other_splits_are_refused(cifar_root: Path) -> None:
    assert open_cifar10(str(cifar_root), "val").key(0) == "test_batch/0"
    with pytest.raises(DatasetError, match="cifar10 has no split 'dev'") as caught:
        open_cifar10(str(cifar_root), "dev")
    assert "train and test" in str(caught.value.hint)


def test_batches_of_python_2_and_3_read_alike() -> None:
    """The originals hold byte strings; copies written by Python 3 hold text and encoded bytes."""
    ours = cifar_batch(rows=2)
    theirs = ours.replace(b"X\x04\x00\x00\x00data", b"U\x04data").replace(b"X\x06\x00\x00\x00labels", b"U\x06labels")
    assert theirs != ours
    assert loads(theirs, "batch").keys() == loads(ours, "batch").keys()
    assert np.array_equal(loads(theirs, "batch")["data"], loads(ours, "batch")["data"])


class Malice:
    """Runs a command when it is unpickled by an ordinary unpickler."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("exit 1",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_names_a_function_is_refused_and_nothing_runs(protocol: int) -> None:
    with pytest.raises(DatasetError, match=r"evil: .*it names (posix|os)\.system, which is not allowed"):
        loads(pickle.dumps({"data": Malice()}, protocol), "evil")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100).filter(lambda data: b"r" not in data))  # LONG_BINPUT may ask for gigabytes of memo
def test_bytes_that_are_no_batch_are_a_dataset_error(data: bytes) -> None:
    with pytest.raises(DatasetError, match="noise: not a batch"):
        loads(b"\x80\x02" + data, "noise")


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1])
def test_a_truncated_batch_is_named(cifar_root: Path, cut: int) -> None:
    path = cifar_root / "data_batch_3"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DatasetError, match="data_batch_3: not a batch of CIFAR-10, or damaged"):
        open_cifar10(str(cifar_root), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (cifar_batch("data_batch_2", labels=[*range(19), 3]), "data_batch_2/10 has label 10, and there are 10 classes"),
        (cifar_batch("data_batch_2", labels=[1, 2]), "data_batch_2: .*one row of 3072 bytes for each label"),
        (cifar_batch("data_batch_2", data=np.zeros((20, 3072))), "data_batch_2: .*an array that is not uint8"),
        (cifar_batch("data_batch_1"), "data_batch_2: its label is 'training batch 1 of 5'"),
        (cifar_batch("test_batch"), "data_batch_2: its label is 'testing batch 1 of 1'.* wrong split"),
    ],
)
def test_a_wrong_batch_is_named(cifar_root: Path, content: bytes, message: str) -> None:
    (cifar_root / "data_batch_2").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        open_cifar10(str(cifar_root), "train")


def test_a_class_without_images_is_named(cifar_root: Path) -> None:
    (cifar_root / "test_batch").write_bytes(cifar_batch("test_batch", labels=[1] * 20))
    with pytest.raises(DatasetError, match="test has no image of class airplane"):
        open_cifar10(str(cifar_root), "test")


def test_an_absent_batch_or_pack_is_named(cifar_root: Path) -> None:
    (cifar_root / "data_batch_4").unlink()
    with pytest.raises(DatasetError, match=r"data_batch_4: cannot be read \(No such file"):
        open_cifar10(str(cifar_root), "train")
    with pytest.raises(DatasetError, match=r"there is no cifar10_full_jpeg.npz in it"):
        open_cifar10(str(cifar_root), "train_jpeg")


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip"])
def test_a_damaged_pack_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "cifar10_full_jpeg.npz"
    path.write_bytes(damage)
    with pytest.raises(DatasetError, match=r"cifar10_full_jpeg.npz: not a pack of CIFAR-10's images, or damaged"):
        open_cifar10(str(path), "train")


def test_a_damaged_image_of_the_pack_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pack.npz"
    arrays: dict[str, Any] = {"test_jpeg": np.zeros(30, np.uint8), "test_labels": np.arange(10)}
    np.savez(path, **arrays, test_offsets=np.arange(0, 33, 3))
    with pytest.raises(DatasetError, match=r"pack.npz: test_batch/4: damaged, or not an image"):
        open_cifar10(str(path), "test")[4]
    np.savez(path, **arrays, test_offsets=np.arange(0, 30, 3))
    with pytest.raises(DatasetError, match=r"pack.npz: test has 10 labels, and its offsets do not match"):
        open_cifar10(str(path), "test")
