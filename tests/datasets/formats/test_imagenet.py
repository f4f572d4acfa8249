"""ImageNet in folders and in the original tars: the same samples, and errors that name every damage."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_harness import jpeg, tar_bytes, write_devkit, write_tar
from PIL import Image
from real_data import REAL

from mtl_cloud.datasets import assert_disjoint
from mtl_cloud.datasets.formats.ilsvrc_devkit import class_names
from mtl_cloud.datasets.formats.imagenet import open_imagenet
from mtl_cloud.errors import DatasetError

Pack = Callable[[Path, Path], Path]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_tars_read_identically_to_the_folders(
    imagenet_photographs: Path, pack_as_tars: Pack, tmp_path: Path, split: str
) -> None:
    """Keys, order, labels, class names, stored bytes and, for some images, pixels."""
    source = imagenet_photographs
    tars = pack_as_tars(source / "ILSVRC2012", tmp_path / "tars")
    (tars / "meta").symlink_to(source / "meta")
    folder, tar = open_imagenet(str(source), split), open_imagenet(str(tars), split)

    assert tar.info == folder.info
    assert [tar.key(i) for i in range(len(tar))] == [folder.key(i) for i in range(len(folder))]
    assert np.array_equal(tar.targets, folder.targets)
    for i in range(len(folder)):
        file = source / "ILSVRC2012" / split / folder.key(i)
        assert tar.read(i) == folder.read(i) == file.read_bytes()
    for i in range(0, len(folder), len(folder) // 20):
        reference = Image.open(source / "ILSVRC2012" / split / folder.key(i)).convert("RGB")
        assert np.array_equal(tar[i].image, np.asarray(reference))
        assert tar[i].classification == folder[i].classification


@pytest.mark.parametrize("imagenet_photographs", [REAL], indirect=True)
def test_the_real_sample_has_its_published_counts_and_names(imagenet_photographs: Path) -> None:
    train, val = (open_imagenet(str(imagenet_photographs), split) for split in ("train", "val"))
    assert np.bincount(train.targets).tolist() == [125] * 10
    assert np.bincount(val.targets).tolist() == [50] * 10
    assert train.info.classes["classification"][:3] == ("tench", "English springer", "cassette player")
    assert_disjoint(train, val)


def test_labels_are_those_of_torchvisions_folder_reader(imagenet_photographs: Path) -> None:
    from torchvision.datasets import ImageFolder

    root = imagenet_photographs / "ILSVRC2012"
    for split in ("train", "val"):
        dataset = open_imagenet(str(root), split)
        reference = [("/".join(Path(path).parts[-2:]), label) for path, label in ImageFolder(str(root / split)).samples]
        assert [(dataset.key(i), int(dataset.targets[i])) for i in range(len(dataset))] == reference


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """As ImageNet's two that are called crane; tables are keyed by name."""
    words = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane"}
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/synset_words.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in words.items()))
    assert class_names(list(words), tmp_path) == ("tench", "crane (n02012849)", "crane (n03126707)")


@pytest.mark.parametrize("imagenet_photographs", [REAL], indirect=True)
def test_class_names_are_known_for_all_thousand_and_differ(imagenet_photographs: Path) -> None:
    """ImageNet has two classes called crane and two called maillot; tables are keyed by name."""
    meta = imagenet_photographs / "meta"
    wnids = [line.split()[0] for line in (meta / "synset_words.txt").read_text().splitlines()]
    names = class_names(wnids, meta.parent)
    assert len(set(names)) == 1000
    assert (names[0], names[134], names[517]) == ("tench", "crane (n02012849)", "crane (n03126707)")


def test_full_size_images_of_every_kind_decode(imagenet_photographs: Path, tmp_path: Path) -> None:
    """Greyscale ones are among them; the class folders serve as a train split."""
    (tmp_path / "train").symlink_to(imagenet_photographs / "full_size")
    dataset = open_imagenet(str(tmp_path), "train")
    shapes = [dataset[i].image.shape for i in range(0, len(dataset), -(-len(dataset) // 20))]
    assert len(dataset) in {9, 80}  # those that packages ship, and the real ones
    assert all(shape[2] == 3 and max(shape) > 224 for shape in shapes)


def test_names_come_from_the_devkits_map_where_there_are_no_words(imagenet_root: Path) -> None:
    assert open_imagenet(str(imagenet_root), "val").info.classes["classification"] == ("n00000001", "n00000002")
    write_devkit(imagenet_root)
    assert open_imagenet(str(imagenet_root), "val").info.classes["classification"] == ("cat fish", "dog")


def test_a_dataset_survives_a_pickle_for_a_loader_worker(imagenet_tars: Path) -> None:
    dataset = open_imagenet(str(imagenet_tars), "train")
    first = dataset[0].image
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[0].image, first)


def test_the_uri_may_name_a_tar_or_the_folder_around(imagenet_tars: Path) -> None:
    keys = ["n00000001/ILSVRC2012_val_00000001.JPEG", "n00000002/ILSVRC2012_val_00000002.JPEG"]
    by_tar = open_imagenet(str(imagenet_tars / "ILSVRC2012_img_val.tar"), "val")
    imagenet_tars.rename(imagenet_tars.with_name("ILSVRC2012_tars"))
    around = imagenet_tars.parent / "around"
    around.mkdir()
    (around / "ILSVRC2012").symlink_to(imagenet_tars.with_name("ILSVRC2012_tars"))
    by_folder = open_imagenet(str(around), "val")
    assert [by_tar.key(i) for i in range(2)] == [by_folder.key(i) for i in range(2)] == keys


def test_validation_images_without_folders_are_labelled_by_the_devkit(imagenet_root: Path) -> None:
    folders = open_imagenet(str(imagenet_root), "val")
    expected = [(folders.key(i), int(folders.targets[i]), folders.read(i)) for i in range(len(folders))]
    for file in list((imagenet_root / "val").glob("*/*.JPEG")):
        file.rename(imagenet_root / "val" / file.name)
    for folder in list((imagenet_root / "val").glob("n*")):
        folder.rmdir()
    write_devkit(imagenet_root / "meta")
    flat = open_imagenet(str(imagenet_root), "val")
    assert [(flat.key(i), int(flat.targets[i]), flat.read(i)) for i in range(len(flat))] == expected


@pytest.mark.parametrize(
    ("ids", "mapping", "message"),
    [
        ("2", "n00000001 2 a\nn00000002 1 b\n", r"ILSVRC2012_val_00000002.JPEG: not one of the 1 validation images"),
        ("2 7", "n00000001 2 a\nn00000002 1 b\n", r"ground_truth.txt, line 2: the id '7' is not in map_clsloc.txt"),
        ("2 1", "n00000001 2 a\nn00000003 1 b\n", r"val: images of 1 classes that the train split .* e.g. n00000003"),
        ("2 1", "n00000001\n", r"map_clsloc.txt, line 1: 2 columns are expected"),
    ],
)
def test_a_wrong_label_is_named(imagenet_tars: Path, ids: str, mapping: str, message: str) -> None:
    write_devkit(imagenet_tars, ids, mapping)
    with pytest.raises(DatasetError, match=message) as caught:
        open_imagenet(str(imagenet_tars), "val")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["map_clsloc.txt", "ILSVRC2012_validation_ground_truth.txt"])
def test_the_validation_tar_without_the_devkit_says_which_file_is_missing(imagenet_tars: Path, name: str) -> None:
    (imagenet_tars / name).unlink()
    with pytest.raises(DatasetError, match=f"{name} is not beside them") as caught:
        open_imagenet(str(imagenet_tars), "val")
    assert name in str(caught.value.hint)


def test_an_empty_class_is_named_in_both_forms(imagenet_root: Path, pack_as_tars: Pack, tmp_path: Path) -> None:
    for file in (imagenet_root / "train/n00000002").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="train/n00000002: the class has no images"):
        open_imagenet(str(imagenet_root), "train")
    tars = pack_as_tars(imagenet_root, tmp_path / "tars")
    with pytest.raises(DatasetError, match=r"ILSVRC2012_img_train.tar: n00000002.tar: the class has no images"):
        open_imagenet(str(tars), "train")


def test_a_damaged_image_is_named_with_its_archive(imagenet_root: Path, pack_as_tars: Pack, tmp_path: Path) -> None:
    (imagenet_root / "train/n00000001/n00000001_1.JPEG").write_bytes(b"<html>404</html>")
    with pytest.raises(DatasetError, match=r"train/n00000001/n00000001_1.JPEG: damaged, or not an image"):
        open_imagenet(str(imagenet_root), "train")[0]
    tars = pack_as_tars(imagenet_root, tmp_path / "tars")
    with pytest.raises(DatasetError, match=r"train.tar: n00000001/n00000001_1.JPEG: damaged, or not an image"):
        open_imagenet(str(tars), "train")[0]


def test_missing_files_are_named(imagenet_root: Path) -> None:
    with pytest.raises(DatasetError, match=r"neither the folders train/ and val/ nor the tars"):
        open_imagenet(str(imagenet_root / "train"), "train")
    with pytest.raises(DatasetError, match="imagenet has no split 'test'"):
        open_imagenet(str(imagenet_root), "test")
    for file in (imagenet_root / "val").glob("*/*"):
        file.unlink()
    for folder in (imagenet_root / "val").iterdir():
        folder.rmdir()
    with pytest.raises(DatasetError, match="val: there are no images in it"):
        open_imagenet(str(imagenet_root), "val")
    (imagenet_root / "val").rmdir()
    with pytest.raises(DatasetError, match=r"neither the folder val/ nor the tar ILSVRC2012_img_val.tar in it"):
        open_imagenet(str(imagenet_root), "val")


def test_a_training_tar_may_have_either_of_its_names(imagenet_tars: Path) -> None:
    (imagenet_tars / "ILSVRC2012_img_train.tar").rename(imagenet_tars / "ILSVRC2012_train.tar")
    assert len(open_imagenet(str(imagenet_tars), "train")) == 4


def test_greyscale_and_cmyk_images_become_rgb(tmp_path: Path) -> None:
    images = {"n1_1.JPEG": jpeg(mode="L"), "n1_2.JPEG": jpeg(mode="CMYK"), "n1_3.JPEG": jpeg()}
    write_tar(tmp_path / "ILSVRC2012_train.tar", {"n1.tar": tar_bytes(images)})
    dataset = open_imagenet(str(tmp_path), "train")
    assert [dataset[i].image.shape for i in range(3)] == [(24, 32, 3)] * 3
