"""Preparation of shards: the same bytes every time, and all errors in the original are named."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_harness import (
    cifar_batch,
    jpeg,
    tar_bytes,
    voc_annotation,
    voc_object,
    write_devkit,
    write_mask,
    write_tar,
)
from PIL import Image
from real_data import real
from s3_servers import BUCKET, CREDENTIALS, moto
from waiting import wait_for

from mtl_cloud.datasets import DatasetInfo, open_dataset
from mtl_cloud.datasets.formats.imagenet import open_imagenet
from mtl_cloud.datasets.preparation.archives import open_sources
from mtl_cloud.datasets.preparation.prepare import Options, prepare
from mtl_cloud.datasets.preparation.shard_job import QUARANTINE
from mtl_cloud.datasets.shards import DatasetManifest, open_shards, read_manifest
from mtl_cloud.errors import DatasetError
from mtl_cloud.jobspec.job import DatasetSpec
from mtl_cloud.storage import Data, FolderStorage, Storage, open_storage

WNIDS = ("n00000001", "n00000002")


def prepared(original: Any, root: Path | str, target: Path | str | Storage, **options: Any) -> DatasetManifest:
    """Prepares the original below ``root`` into small shards, in this process alone."""
    storage = open_storage(target) if isinstance(target, str | Path) else target
    with open_sources(original, str(root)) as sources:
        return prepare(original, sources, storage, Options(**{"shard_bytes": 8000} | options))


def files_of(root: Path) -> dict[str, bytes]:
    storage = open_storage(root)
    return {entry.key: storage.read(entry.key) for entry in storage.list("")}


def tar_of_tars(root: Path, images: Mapping[str, bytes]) -> Path:
    """Writes training images (key -> bytes) as the original tar, with the devkit's names beside it."""
    root.mkdir(exist_ok=True)
    classes = sorted({key.partition("/")[0] for key in images})
    inner = {
        f"{wnid}.tar": tar_bytes({k.partition("/")[2]: data for k, data in images.items() if k.startswith(wnid)})
        for wnid in classes
    }
    write_tar(root / "ILSVRC2012_img_train.tar", inner)
    return root


@pytest.fixture
def images() -> dict[str, bytes]:
    return {f"{wnid}/{wnid}_{i}.JPEG": jpeg(seed=10 * c + i) for c, wnid in enumerate(WNIDS) for i in range(4)}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def train_only(root: Path, target: Path, **options: Any) -> DatasetManifest:
    with open_sources("imagenet", str(root), ["train"]) as sources:
        return prepare("imagenet", sources, open_storage(target), Options(**{"shard_bytes": 8000} | options))


# --- the same bytes --------------------------------------------------------------------------------------------------


def test_several_workers_write_what_one_writes(imagenet_tars: Path, tmp_path: Path) -> None:
    prepared("imagenet", imagenet_tars, tmp_path / "one")
    prepared("imagenet", imagenet_tars, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("train-*.tar"))) > 1


class Killed(BaseException):
    """An exception that no handler in the product catches."""


class Mortal(FolderStorage):
    """A folder whose process dies at the n-th change, before or after making it."""

    def __init__(self, root: Path, dies_at: int, *, made: bool) -> None:
        super().__init__(root)
        self.left, self.made = dies_at, made

    def write(self, key: str, data: Data) -> None:
        self._live(lambda: super(Mortal, self).write(key, data))

    def delete(self, key: str) -> None:
        self._live(lambda: super(Mortal, self).delete(key))

    def _live(self, change: Callable[[], None]) -> None:
        self.left -= 1
        if self.left >= 0 or (self.left == -1 and self.made):
            change()
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize("made", [False, True])
def test_killed_at_every_change_and_restarted_it_leaves_the_same_bytes(
    voc_root: Path, tmp_path: Path, made: bool
) -> None:
    prepared("voc", voc_root, tmp_path / "whole", shard_bytes=4000)
    expected = files_of(tmp_path / "whole")
    for dies_at in range(100):
        target = tmp_path / f"killed-{dies_at}"
        try:
            prepared("voc", voc_root, Mortal(target, dies_at, made=made), shard_bytes=4000)
        except Killed:
            manifest = prepared("voc", voc_root, target, shard_bytes=4000)
            assert files_of(target) == expected
            assert manifest == read_manifest(open_storage(target))
        else:
            break
    assert dies_at > 10


def test_a_finished_preparation_is_not_repeated(voc_root: Path, tmp_path: Path) -> None:
    first = prepared("voc", voc_root, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepared("voc", voc_root, Mortal(tmp_path / "out", 0, made=False)) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_a_preparation_abandoned_for_other_options_leaves_nothing_behind(voc_root: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        prepared("voc", voc_root, Mortal(tmp_path / "out", 6, made=True), shard_bytes=3000)
    prepared("voc", voc_root, tmp_path / "out", shard_bytes=30_000)
    prepared("voc", voc_root, tmp_path / "other", shard_bytes=30_000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")


def test_options_changed_and_changed_back_give_the_first_ones_shards(voc_root: Path, tmp_path: Path) -> None:
    """Finished shards that another preparation has overwritten do not count as finished."""
    prepared("voc", voc_root, tmp_path / "whole", shard_bytes=3000)
    for shard_bytes, dies_at in [(3000, 4), (10**6, 4)]:
        with pytest.raises(Killed):
            prepared("voc", voc_root, Mortal(tmp_path / "out", dies_at, made=True), shard_bytes=shard_bytes)
    prepared("voc", voc_root, tmp_path / "out", shard_bytes=3000)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_every_sample_keeps_its_own_boxes_across_shards(voc_root: Path, tmp_path: Path) -> None:
    for name, xmax in [("a", 10), ("b", 20)]:
        text = voc_annotation(*(voc_object("dog", 3 + i, 5, xmax + i, 20) for i in range(3)))
        (voc_root / f"Annotations/{name}.xml").write_text(text)
    manifest = prepared("voc", voc_root, tmp_path / "out", shard_bytes=3000)
    dataset = open_shards(str(tmp_path / "out"), "train")
    assert len(manifest.splits["train"].shards) == 2
    assert [dataset[i].detection.xyxy[:, 2].tolist() for i in range(2)] == [[10, 11, 12], [20, 21, 22]]  # type: ignore[union-attr]


def test_another_dataset_is_never_overwritten(voc_root: Path, cifar_root: Path, tmp_path: Path) -> None:
    prepared("voc", voc_root, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(DatasetError, match="out: already holds a prepared dataset, of other data"):
        prepared("cifar10", cifar_root, tmp_path / "out")
    with pytest.raises(DatasetError, match="or with other options"):
        prepared("voc", voc_root, tmp_path / "out", shard_bytes=9000)
    assert files_of(tmp_path / "out") == before


def test_the_digest_is_the_contents_alone(voc_root: Path, tmp_path: Path) -> None:
    """It does not depend on shard size or location, but changes with any box, pixel or name."""
    digest = prepared("voc", voc_root, tmp_path / "a").digest
    assert prepared("voc", voc_root, tmp_path / "b", shard_bytes=10**6).digest == digest
    seen = {digest}
    boxes = voc_annotation(voc_object("dog", 3, 5, 20, 23))
    changes: Mapping[str, Callable[[], object]] = {
        "box": lambda: (voc_root / "Annotations/b.xml").write_text(boxes),
        "image": lambda: (voc_root / "JPEGImages/c.jpg").write_bytes(jpeg(seed=9)),
        "mask": lambda: write_mask(voc_root / "SegmentationClass/a.png", np.full((24, 32), 3)),
    }
    for name, change in changes.items():
        change()
        seen.add(prepared("voc", voc_root, tmp_path / name).digest)
    assert len(seen) == 4


def test_shards_hold_a_mixture_of_the_classes(tmp_path: Path) -> None:
    """The tars are sorted by class: without shuffling, a few shards would hold a few classes."""
    many = {f"{wnid}/{wnid}_{i}.JPEG": jpeg(8, 8, seed=i) for wnid in WNIDS for i in range(40)}
    train_only(tar_of_tars(tmp_path / "tars", many), tmp_path / "out", shard_bytes=60_000)
    rows = open_shards(str(tmp_path / "out"), "train").rows
    shares = [rows["classification"][rows["shard"] == shard].mean() for shard in range(rows["shard"].max() + 1)]
    assert len(shares) >= 3
    assert all(0.2 < share < 0.8 for share in shares)


# --- what is wrong ---------------------------------------------------------------------------------------------------


def png_bytes() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(file, "PNG")
    return file.getvalue()


BAD: Mapping[str, tuple[str, bytes, str]] = {
    "no image": ("n00000001/n00000001_1.JPEG", b"<html>404</html>", "damaged, or not an image"),
    "half a JPEG": ("n00000001/n00000001_1.JPEG", jpeg(seed=3)[:-300], "damaged, or not an image .*truncated"),
    "empty": ("n00000001/n00000001_1.JPEG", b"", "damaged, or not an image"),
    "another class": ("n00000001/n00000002_9.JPEG", jpeg(seed=77), "wrong label: it is named after n00000002"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_and_ends_it_or_is_left_out(images: dict[str, bytes], tmp_path: Path, name: str) -> None:
    key, data, what = BAD[name]
    root = tar_of_tars(tmp_path / "tars", images | {key: data})
    where = f"ILSVRC2012_img_train.tar: {key}: {what}"
    with pytest.raises(DatasetError, match=where) as caught:
        train_only(root, tmp_path / "fatal")
    assert "--on-bad" in str(caught.value.hint)
    good = sorted(set(images) - {key})
    for on_bad in ("skip", "quarantine"):
        split = train_only(root, tmp_path / on_bad, on_bad=on_bad).splits["train"]
        assert [finding.key for finding in split.left_out] == [key]
        dataset = open_shards(str(tmp_path / on_bad), "train")
        assert [dataset.key(i) for i in range(len(dataset))] == good
        kept = files_of(tmp_path / on_bad).get(f"{QUARANTINE}train/{key}")
        assert kept == (data if on_bad == "quarantine" else None)


def test_after_a_bad_sample_it_resumes_with_another_policy(images: dict[str, bytes], tmp_path: Path) -> None:
    """Hours of work are not lost to the first bad image; only shards with bad samples depend on the policy."""
    train_only(tar_of_tars(tmp_path / "whole", images), tmp_path / "whole.out", shard_bytes=4000)
    rows = open_shards(str(tmp_path / "whole.out"), "train").rows
    key = rows["key"][rows["shard"].argmax()].decode()  # of the last shard
    root = tar_of_tars(tmp_path / "tars", images | {key: b"no image"})
    with pytest.raises(DatasetError, match=key):
        train_only(root, tmp_path / "out", shard_bytes=4000)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-*.tar")}
    train_only(root, tmp_path / "out", shard_bytes=4000, on_bad="quarantine")
    assert finished
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    train_only(root, tmp_path / "other", shard_bytes=4000, on_bad="quarantine")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")
    with pytest.raises(DatasetError, match="with other options"):
        train_only(root, tmp_path / "out", shard_bytes=4000, on_bad="fatal")


def test_a_duplicate_name_is_a_bad_sample_the_second_time(images: dict[str, bytes], tmp_path: Path) -> None:
    root = tar_of_tars(tmp_path / "tars", images)
    first = WNIDS[0]
    file = io.BytesIO(tar_bytes({k.partition("/")[2]: v for k, v in images.items() if k.startswith(first)}))
    with tarfile.open(fileobj=file, mode="a") as tar:
        info = tarfile.TarInfo(f"{first}_1.JPEG")
        info.size = len(jpeg(seed=50))
        tar.addfile(info, io.BytesIO(jpeg(seed=50)))
    write_tar(root / "ILSVRC2012_img_train.tar", {f"{first}.tar": file.getvalue()})
    message = f"{first}/{first}_1.JPEG: a duplicate: an earlier sample has the same name"
    with pytest.raises(DatasetError, match=message):
        train_only(root, tmp_path / "fatal")
    train_only(root, tmp_path / "skip", on_bad="skip")
    dataset = open_shards(str(tmp_path / "skip"), "train")
    assert [dataset.read(i) for i in range(len(dataset))] == [images[k] for k in sorted(images) if k.startswith(first)]


def test_unusual_images_are_kept_and_named(images: dict[str, bytes], tmp_path: Path) -> None:
    """As in the real training set, which has 22 CMYK JPEGs and a PNG named as a JPEG."""
    odd = {
        "n00000001/n00000001_1.JPEG": (jpeg(mode="CMYK"), "a CMYK JPEG"),
        "n00000001/n00000001_2.JPEG": (png_bytes(), "a PNG named as a JPEG"),
        "n00000002/n00000002_3.JPEG": (
            images["n00000001/n00000001_3.JPEG"],
            "a duplicate: the same bytes as train/n00000001/n00000001_3.JPEG",
        ),
    }
    root = tar_of_tars(tmp_path / "tars", images | {key: data for key, (data, _) in odd.items()})
    split = train_only(root, tmp_path / "out").splits["train"]
    assert (split.samples, split.left_out) == (8, ())
    assert [finding.key for finding in split.notes] == list(odd)
    assert all(finding.what.endswith(what) for finding, (_, what) in zip(split.notes, odd.values(), strict=True))
    plain, ours = open_imagenet(str(root), "train"), open_shards(str(tmp_path / "out"), "train")
    assert all(np.array_equal(plain[i].image, ours[i].image) for i in range(8))


def test_an_image_that_is_in_both_splits_is_named(imagenet_root: Path, tmp_path: Path) -> None:
    leaked = imagenet_root / "train/n00000001/n00000001_1.JPEG"
    (imagenet_root / "val/n00000001/ILSVRC2012_val_00000001.JPEG").write_bytes(leaked.read_bytes())
    notes = {note.key: note.what for note in prepared("imagenet", imagenet_root, tmp_path / "out").splits["val"].notes}
    what = notes["n00000001/ILSVRC2012_val_00000001.JPEG"]
    assert what.endswith("the same bytes as train/n00000001/n00000001_1.JPEG")


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.7])
def test_a_truncated_tar_is_found_before_anything_is_written(
    images: dict[str, bytes], tmp_path: Path, cut: float
) -> None:
    root = tar_of_tars(tmp_path / "tars", images)
    tar = root / "ILSVRC2012_img_train.tar"
    tar.write_bytes(tar.read_bytes()[: int(tar.stat().st_size * cut)])
    with pytest.raises(DatasetError, match=rf"{tar}.*not a whole tar"):
        train_only(root, tmp_path / "out", on_bad="skip")
    assert not (tmp_path / "out").exists()


def test_wrong_labels_of_the_other_datasets_are_named(voc_root: Path, cifar_root: Path, tmp_path: Path) -> None:
    (voc_root / "Annotations/b.xml").write_text(voc_annotation(voc_object("unicorn", 3, 5, 20, 24)))
    write_mask(voc_root / "SegmentationClass/a.png", np.full((20, 30), 1))
    mask = "a.jpg: its mask has 30x20 pixels, its image 32x24"
    with pytest.raises(DatasetError, match=rf"{mask}(.|\n)*b.xml: unknown class 'unicorn'"):
        prepared("voc", voc_root, tmp_path / "fatal", shard_bytes=10**6)
    (cifar_root / "data_batch_2").write_bytes(cifar_batch("data_batch_2", labels=[10] * 20))
    with pytest.raises(DatasetError, match="data_batch_2/0 has label 10, and there are 10 classes"):
        prepared("cifar10", cifar_root, tmp_path / "cifar")


def test_a_bad_mask_takes_its_sample_with_it_into_quarantine(voc_root: Path, tmp_path: Path) -> None:
    write_mask(voc_root / "SegmentationClass/a.png", np.full((24, 32), 21))
    split = prepared("voc", voc_root, tmp_path / "out", on_bad="quarantine").splits["train"]
    (finding,) = split.left_out
    assert finding.what.endswith("JPEGImages/a.jpg: its mask holds class 21, and there are 21 classes")
    kept = [name for name in files_of(tmp_path / "out") if name.startswith(QUARANTINE)]
    assert kept == [f"{QUARANTINE}train/VOC2012/a.{suffix}" for suffix in ("jpg", "png", "xml")]


def test_a_split_of_bad_samples_alone_is_an_error(images: dict[str, bytes], tmp_path: Path) -> None:
    root = tar_of_tars(tmp_path / "tars", dict.fromkeys(images, b"no image"))
    with pytest.raises(DatasetError, match="damaged, or not an image"):
        train_only(root, tmp_path / "out", on_bad="skip")


# --- from a storage --------------------------------------------------------------------------------------------------


def uploaded(folder: Path, storage: Storage) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write(str(path.relative_to(folder)), path.read_bytes())


@pytest.mark.parametrize("original", ["imagenet", "voc", "cifar10"])
def test_originals_in_a_storage_give_what_those_of_a_folder_give(
    request: pytest.FixtureRequest, tmp_path: Path, original: str
) -> None:
    fixture = {"imagenet": "imagenet_tars", "voc": "voc_root", "cifar10": "cifar_root"}[original]
    root: Path = request.getfixturevalue(fixture)
    url = f"memory://originals-{tmp_path}-{original}"
    uploaded(root.parent if original == "voc" else root, open_storage(url))
    here = prepared(original, root, tmp_path / "here")
    there = prepared(original, url, tmp_path / "there")
    assert there.digest == here.digest
    assert here.splits == there.splits


def test_voc_is_prepared_from_its_tar(voc_root: Path, tmp_path: Path) -> None:
    root = voc_root.parent.parent
    members = {str(p.relative_to(root)): p.read_bytes() for p in sorted(voc_root.parent.rglob("*")) if p.is_file()}
    write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", members)
    from_tar = prepared("voc", tmp_path / "VOCtrainval_11-May-2012.tar", tmp_path / "tar")
    assert from_tar.digest == prepared("voc", voc_root, tmp_path / "folder").digest
    storage = open_storage(f"memory://voc-{tmp_path}")
    storage.write("VOCtrainval_11-May-2012.tar", (tmp_path / "VOCtrainval_11-May-2012.tar").read_bytes())
    assert prepared("voc", storage.url, tmp_path / "stored").digest == from_tar.digest


def test_missing_archives_are_named(tmp_path: Path) -> None:
    storage = open_storage(f"memory://nothing-{tmp_path}")
    with pytest.raises(DatasetError, match=r"no ILSVRC2012_img_train.tar or ILSVRC2012_train.tar there"):
        prepared("imagenet", storage.url, tmp_path / "out")
    with pytest.raises(DatasetError, match="neither VOC2012/JPEGImages/ nor one tar of it there"):
        prepared("voc", storage.url, tmp_path / "out")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with moto() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/data"


def test_from_s3_to_s3_and_into_a_job(imagenet_tars: Path, s3: str, tmp_path: Path) -> None:
    uploaded(imagenet_tars, open_storage(f"{s3}/originals"))
    manifest = prepared("imagenet", f"{s3}/originals", f"{s3}/prepared")
    assert manifest.digest == prepared("imagenet", imagenet_tars, tmp_path / "here").digest
    dataset = open_dataset(DatasetSpec(name="imagenet", uri=f"{s3}/prepared"), "train")
    plain = open_imagenet(str(imagenet_tars), "train")
    assert dataset.info == DatasetInfo("imagenet", "train", plain.info.classes, digest=manifest.digest)
    assert all(np.array_equal(dataset[i].image, plain[i].image) for i in range(len(plain)))


# --- real images -----------------------------------------------------------------------------------------------------


def assert_all_same(original: Any, root: Path, target: Path) -> DatasetManifest:
    """Keys, labels and stored bytes of all samples, and some images."""
    manifest = prepared(original, root, target, shard_bytes=8 << 20)
    for split in manifest.splits:
        plain = open_dataset(DatasetSpec(name=original, uri=str(root)), split)
        ours = open_shards(str(target), split)
        for i in range(0, len(plain), 10):
            one, other = ours[i], plain[i]
            assert one.key == other.key
            assert np.array_equal(one.image, other.image)
            assert np.array_equal(one.classification, other.classification)  # type: ignore[arg-type]
            assert one.detection is None or np.array_equal(one.detection.xyxy, other.detection.xyxy)  # type: ignore[union-attr]
    return manifest


@pytest.mark.parametrize(
    ("imagenet_photographs", "train", "val"), [("shipped", 72, 24), real(1250, 500)], indirect=["imagenet_photographs"]
)
def test_imagenet_as_the_original_tars(
    imagenet_photographs: Path, pack_as_tars: Callable[[Path, Path], Path], tmp_path: Path, train: int, val: int
) -> None:
    tars = pack_as_tars(imagenet_photographs / "ILSVRC2012", tmp_path / "tars")
    (tars / "meta").symlink_to(imagenet_photographs / "meta")
    manifest = assert_all_same("imagenet", tars, tmp_path / "out")
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": train, "val": val}
    plain, ours = open_imagenet(str(tars), "val"), open_shards(str(tmp_path / "out"), "val")
    assert [(ours.key(i), ours.read(i)) for i in range(val)] == [(plain.key(i), plain.read(i)) for i in range(val)]


@pytest.mark.parametrize(
    ("voc_photographs", "train", "val", "boxes"),
    [("shipped", 40, 24, 131), real(248, 249, 1170)],
    indirect=["voc_photographs"],
)
def test_voc_with_its_boxes(voc_photographs: Path, tmp_path: Path, train: int, val: int, boxes: int) -> None:
    manifest = assert_all_same("voc", voc_photographs / "VOCdevkit", tmp_path / "out")
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": train, "val": val}
    assert sum(len(open_shards(str(tmp_path / "out"), split).boxes) for split in ("train", "val")) == boxes


@pytest.mark.parametrize(
    ("cifar_photographs", "train", "test"), [("shipped", 1000, 500), real(5085, 1017)], indirect=["cifar_photographs"]
)
def test_cifar10_without_loss(cifar_photographs: Path, tmp_path: Path, train: int, test: int) -> None:
    manifest = assert_all_same("cifar10", cifar_photographs / "cifar-10-batches-py", tmp_path / "out")
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": train, "test": test}


# --- killed for good -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_killed_at_random_moments_leave_the_same_bytes(tmp_path: Path) -> None:
    """The command gets a SIGKILL; its workers then end by themselves."""
    many = {f"{wnid}/{wnid}_{i}.JPEG": jpeg(400, 300, seed=i) for wnid in WNIDS for i in range(600)}
    root = tar_of_tars(tmp_path / "tars", many)
    write_devkit(root)
    command = [sys.executable, "-m", "mtl_cloud", "data", "prepare", "imagenet", str(root)]
    options = ["--split", "train", "--workers", "2", "--shard-mib", "1"]
    subprocess.run([*command, str(tmp_path / "whole"), *options], check=True, capture_output=True)
    draw, environ = random.Random(7), os.environ | {"MARKER": str(tmp_path)}
    for _ in range(5):
        process = subprocess.Popen([*command, str(tmp_path / "killed"), *options], env=environ)
        _wait_for_parts(tmp_path / "killed", 1, process)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.wait()
    assert not (tmp_path / "killed/manifest.json").exists()
    subprocess.run([*command, str(tmp_path / "killed"), *options], check=True, capture_output=True)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    wait_for(lambda: not _processes_left(f"MARKER={tmp_path}"))  # they end when their parent does


def _wait_for_parts(target: Path, more: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until ``more`` further shards are finished."""
    wanted = len(list(target.glob("parts/*/*.npz"))) + more
    wait_for(lambda: process.poll() is not None or len(list(target.glob("parts/*/*.npz"))) >= wanted)
    assert process.poll() is None


def _processes_left(marker: str) -> int:
    """Number of processes with ``marker`` in their environment; workers inherit it."""
    return sum(marker.encode() in _status(path) for path in Path("/proc").glob("[0-9]*/environ"))


def _status(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
