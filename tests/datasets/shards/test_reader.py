"""A prepared dataset has the samples of the plain one, each read by one verified range of bytes."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtl_cloud.datasets import Dataset, open_dataset, open_splits, restrict
from mtl_cloud.datasets.base import Sample
from mtl_cloud.datasets.shards import FileEntry, ShardDataset, open_shards
from mtl_cloud.datasets.shards.reader import StorageReader
from mtl_cloud.datasets.wrappers import SkippingDataset
from mtl_cloud.errors import DatasetError, StorageError
from mtl_cloud.jobspec.job import DatasetSpec, SplitsSpec
from mtl_cloud.storage import MemoryStorage, open_storage

Prepared = tuple[str, Path, Callable[[str], Dataset]]


def assert_same(ours: Sample, plain: Sample) -> None:
    """Bit for bit, including absent labels."""
    assert ours.key == plain.key
    assert np.array_equal(ours.image, plain.image)
    assert type(ours.classification) is type(plain.classification)
    assert np.array_equal(ours.classification, plain.classification)  # type: ignore[arg-type]
    assert (ours.segmentation is None) == (plain.segmentation is None)
    assert ours.segmentation is None or np.array_equal(ours.segmentation, plain.segmentation)  # type: ignore[arg-type]
    assert (ours.detection is None) == (plain.detection is None)
    for field in ("xyxy", "classes", "difficult") if ours.detection else ():
        mine, theirs = getattr(ours.detection, field), getattr(plain.detection, field)
        assert (mine.dtype, mine.tolist()) == (theirs.dtype, theirs.tolist())


def shards_of(root: Path, split: str) -> ShardDataset:
    return open_shards(str(root), split)


class Recording:
    """A reader that records the requested ranges."""

    def __init__(self, reader: StorageReader) -> None:
        self.reader, self.asked = reader, list[tuple[str, int, int]]()

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        self.asked.append((shard.key, offset, size))
        return self.reader.read(shard, offset, size)

    def read_again(self, shard: FileEntry, offset: int, size: int) -> bytes:
        return self.read(shard, offset, size)


def test_samples_keys_and_labels_are_those_of_the_plain_dataset(prepared: Prepared) -> None:
    name, root, plain_split = prepared
    for split in ("train", "test" if name == "cifar10" else "val"):
        plain, ours = plain_split(split), open_shards(str(root), split)
        assert replace(ours.info, digest=None) == plain.info
        assert len(ours) == len(plain)
        for i in range(len(plain)):
            assert_same(ours[i], plain[i])
            assert (ours.key(i), ours.labels(i)) == (plain.key(i), plain.labels(i))


def test_a_job_names_the_folder_and_gets_the_prepared_dataset(prepared: Prepared) -> None:
    name, root, plain_split = prepared
    splits = SplitsSpec(train="train", val="test" if name == "cifar10" else "val")
    train, val = open_splits(DatasetSpec(name=name, uri=str(root), splits=splits))
    assert isinstance(train, ShardDataset)
    assert train.info.digest == val.info.digest
    assert [train.key(i) for i in range(len(train))] == [plain_split("train").key(i) for i in range(len(train))]


def test_a_sample_is_one_read_of_the_bytes_needed(prepared: Prepared) -> None:
    """Image and mask are adjacent; without the mask, its bytes are not read; other labels need no read at all."""
    _, root, _ = prepared
    dataset = shards_of(root, "train")
    for i, wanted in [(i, wanted) for i in range(len(dataset)) for wanted in (dataset.info.tasks, ("classification",))]:
        reader = Recording(dataset.reader)  # type: ignore[arg-type]
        narrowed = replace(dataset.with_tasks(frozenset(wanted)), reader=reader)
        sample = narrowed[i]
        row = dataset.rows[i]
        sizes = (
            int(row["size"]) if sample.segmentation is None else row["mask_offset"] - row["offset"] + row["mask_size"]
        )
        assert reader.asked == [(dataset.shards[row["shard"]].key, row["offset"], sizes)]


@pytest.mark.parametrize("prepared", ["voc"], indirect=True)
def test_labels_that_are_not_trained_are_not_read(voc_root: Path, prepared: Prepared) -> None:
    """The same holds for the plain dataset: its damaged mask and annotation cause no error."""
    _, root, plain_split = prepared
    ours = restrict(open_dataset(DatasetSpec(name="voc", uri=str(root), on_bad_sample="skip"), "train"), ["detection"])
    assert all((s.segmentation, s.classification) == (None, None) and s.detection for s in (ours[0], ours[1]))
    (voc_root / "Annotations/a.xml").write_bytes(b"damaged")
    assert restrict(plain_split("train"), ["segmentation"])[0].segmentation is not None
    (voc_root / "SegmentationClass/a.png").write_bytes(b"damaged")
    (voc_root / "Annotations/a.xml").write_bytes((voc_root / "Annotations/b.xml").read_bytes())
    assert restrict(plain_split("train"), ["detection"])[0].detection is not None


def test_a_copy_in_a_worker_is_small_and_gives_the_same_samples(prepared: Prepared) -> None:
    _, root, _ = prepared
    dataset = shards_of(root, "train")
    first = dataset[0]
    copy = pickle.dumps(dataset)
    assert_same(pickle.loads(copy)[0], first)
    assert len(copy) < 3000 + 250 * len(dataset.shards)
    assert dataset.rows.base is not None  # mapped, not read


def test_shards_open_with_plain_tarfile_and_hold_the_labels_as_text(prepared: Prepared) -> None:
    name, root, plain_split = prepared
    plain = plain_split("train")
    members: dict[str, bytes] = {}
    for path in sorted(root.glob("train-*.tar")):
        with tarfile.open(path, "r:") as tar:
            assert tar.format is not None
            members |= {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    for i in range(len(plain)):
        stem = plain.key(i).removesuffix(".JPEG")
        if name == "voc":
            labels = json.loads(members[f"{stem}.json"])
            assert labels["classes"] == ["dog"]
            assert labels["boxes"] == [{"class": "dog", "xyxy": [2.0, 4.0, 20.0, 24.0], "difficult": False}]
            assert (f"{stem}.seg.png" in members) == ("segmentation" in plain.labels(i))
        else:
            assert int(members[f"{stem}.cls"]) == plain[i].classification


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")  # its files
def test_webdataset_reads_the_shards(prepared: Prepared) -> None:
    """An independent reader of the format gets every sample once, decoded, for any set of files."""
    webdataset = pytest.importorskip("webdataset")
    _, root, plain_split = prepared
    plain = plain_split("train")
    by_stem = {plain.key(i).removesuffix(".JPEG"): plain[i] for i in range(len(plain))}
    urls = sorted(map(str, root.glob("train-*.tar")))
    seen = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert sorted(sample["__key__"] for sample in seen) == sorted(by_stem)
    for sample in seen:
        image = next(sample[suffix] for suffix in ("jpg", "ppm") if suffix in sample)
        assert np.array_equal(image, by_stem[sample["__key__"]].image)
        if "cls" in sample:
            assert sample["cls"] == by_stem[sample["__key__"]].classification


def test_the_index_is_an_array_that_numpy_alone_reads(prepared: Prepared) -> None:
    _, root, plain_split = prepared
    rows = np.load(root / "train.index.npy", allow_pickle=False)
    assert [key.decode() for key in rows["key"].tolist()] == [plain_split("train").key(i) for i in range(len(rows))]


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_and_the_sample_named(prepared: Prepared) -> None:
    _, root, _ = prepared
    dataset = shards_of(root, "train")
    shard, offset, size = dataset.extent(1)
    path = root / dataset.shards[shard].key
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=f"{path}: {dataset.key(1)}: damaged: its CRC64NVME") as caught:
        dataset[1]
    assert "mtl-cloud data verify" in str(caught.value.hint)
    assert dataset[0].key == dataset.key(0)


class Flipping(Recording):
    """Corrupts the first ``times`` reads, each at another position."""

    def __init__(self, reader: StorageReader, times: int) -> None:
        super().__init__(reader)
        self.times = times

    def read(self, shard: FileEntry, offset: int, size: int) -> bytes:
        data = bytearray(super().read(shard, offset, size))
        data[10 + len(self.asked)] ^= len(self.asked) <= self.times
        return bytes(data)


def test_bytes_that_were_damaged_in_transit_are_read_again(prepared: Prepared) -> None:
    _, root, _ = prepared
    dataset = shards_of(root, "train")
    reader = Flipping(dataset.reader, times=3)  # type: ignore[arg-type]
    assert_same(replace(dataset, reader=reader)[0], dataset[0])
    assert len(reader.asked) == 4


def test_bytes_that_always_arrive_damaged_differently_are_no_bad_sample(prepared: Prepared) -> None:
    """The stored sample is intact, so it must not be skipped."""
    _, root, _ = prepared
    dataset = shards_of(root, "train")
    reader = Flipping(dataset.reader, times=100)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=f"{dataset.key(0)}: arrived damaged 9 times, each time differently"):
        SkippingDataset(replace(dataset, reader=reader))[0]


def test_a_shard_that_is_short_or_gone_is_named(prepared: Prepared) -> None:
    _, root, _ = prepared
    dataset = shards_of(root, "train")
    shard, offset, _ = dataset.extent(0)
    path = root / dataset.shards[shard].key
    path.write_bytes(path.read_bytes()[: offset + 5])
    with pytest.raises(DatasetError, match=f"{path}: the shard ends at byte {offset + 5}"):
        dataset[0]
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path}: the shard is missing"):
        dataset[0]


def test_a_storage_that_does_not_answer_is_no_bad_sample(prepared: Prepared) -> None:
    """The sample must not be skipped; the run is restarted after a machine error."""
    _, root, _ = prepared

    class Silent(MemoryStorage):
        def read_range(self, key: str, offset: int, size: int) -> bytes:
            raise StorageError("no answer")

    dataset = replace(shards_of(root, "train"), reader=StorageReader(Silent()))
    with pytest.raises(StorageError, match="no answer"):
        dataset[0]


@pytest.mark.parametrize("name", ["train.index.npy", "manifest.json"])
def test_a_damaged_index_or_manifest_is_found_on_opening(prepared: Prepared, name: str) -> None:
    _, root, _ = prepared
    data = (root / name).read_bytes()
    (root / name).write_bytes(
        data.replace(b"dog", b"cat").replace(b"tr", b"TR") if name == "manifest.json" else data[:-1] + b"\x01"
    )
    with pytest.raises(DatasetError, match=f"{root}/{name}: (damaged|not the manifest)"):
        open_shards(str(root), "train")


def test_an_unknown_split_or_dataset_is_answered_with_the_known_ones(prepared: Prepared) -> None:
    name, root, _ = prepared
    with pytest.raises(DatasetError, match="no split 'holdout' was prepared"):
        open_shards(str(root), "holdout")
    with pytest.raises(DatasetError, match=f"this is prepared {name}, not embedded"):
        open_shards(str(root), "train", name="embedded")
    assert open_shards(str(root), "held_out").info.split == "train"


# --- remote ----------------------------------------------------------------------------------------------------------


def test_a_remote_index_is_fetched_once_and_mapped(prepared: Prepared, tmp_path: Path) -> None:
    _, root, plain_split = prepared
    url = f"memory://{tmp_path.name}{prepared[0]}"
    remote, local = open_storage(url), open_storage(root)
    for entry in local.list(""):
        remote.write(entry.key, local.read(entry.key))
    for _ in range(2):
        dataset = open_shards(url, "train", cache=tmp_path / "cache")
        assert_same(dataset[0], plain_split("train")[0])
        remote.delete("train.index.npy")  # the second time it comes from the cache
    for copy in (tmp_path / "cache").glob("*.npy"):
        copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=f"{url}/train.index.npy: not there, but in the manifest"):
        open_shards(url, "train", cache=tmp_path / "cache")
