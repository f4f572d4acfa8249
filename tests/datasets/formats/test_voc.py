"""VOC, compared with torchvision's readers and the published counts, and folders with one error."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_harness import jpeg, voc_annotation, voc_object, write_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import present
from photographs import VOC_NAMES, draw_scene
from real_data import REAL

from mtl_cloud.datasets.base import IGNORE, Sample
from mtl_cloud.datasets.formats.voc import CLASSES, VocObject, boxes, class_set, open_voc, parse_annotation
from mtl_cloud.errors import DatasetError

IMAGES_AND_BOXES = (
    "aeroplane 10 15 bicycle 8 16 bird 7 14 boat 8 13 bottle 16 32 bus 6 7 car 15 26 cat 85 93 chair 36 50 cow 86 169 "
    "diningtable 14 14 dog 86 99 horse 87 119 motorbike 5 10 person 106 205 pottedplant 18 24 sheep 84 205 "
    "sofa 36 38 train 5 6 tvmonitor 14 15"
)
"""Published counts of the real subset, including difficult objects."""


@pytest.fixture(scope="module")
def samples(voc_photographs: Path) -> dict[str, list[Sample]]:
    """All samples, by split."""
    splits = {split: open_voc(str(voc_photographs), split) for split in ("train", "val")}
    return {split: [dataset[i] for i in range(len(dataset))] for split, dataset in splits.items()}


@pytest.mark.parametrize("voc_photographs", [REAL], indirect=True)
def test_the_real_subset_has_its_published_counts(samples: dict[str, list[Sample]]) -> None:
    both = samples["train"] + samples["val"]
    images = Counter(CLASSES[c] for s in both for c in set(present(s.detection).classes.tolist()))
    objects = Counter(CLASSES[c] for s in both for c in present(s.detection).classes.tolist())
    difficult = sum(int(present(s.detection).difficult.sum()) for s in both)
    masks = {split: sum(s.segmentation is not None for s in samples[split]) for split in samples}

    assert " ".join(f"{name} {images[name]} {objects[name]}" for name in CLASSES) == IMAGES_AND_BOXES
    assert (objects.total(), difficult) == (1170, 140)
    assert {split: len(samples[split]) for split in samples} == {"train": 248, "val": 249}
    assert masks == {"train": 241, "val": 249}


@pytest.mark.parametrize("voc_photographs", ["shipped"], indirect=True)
def test_boxes_and_masks_are_those_that_were_drawn(samples: dict[str, list[Sample]]) -> None:
    for number, sample in enumerate(samples["train"] + samples["val"]):
        scene = draw_scene(np.random.default_rng(number))
        assert [CLASSES[c] for c in present(sample.detection).classes] == [VOC_NAMES[thing] for thing in scene.things]
        assert present(sample.detection).xyxy.tolist() == [list(box) for _, box in scene.objects()]
        assert sample.segmentation is None or np.array_equal(sample.segmentation, scene.mask())
    assert [sum(s.segmentation is None for s in samples[split]) for split in samples] == [2, 0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_images_are_those_that_torchvision_reads(
    voc_photographs: Path, samples: dict[str, list[Sample]], split: str
) -> None:
    from torchvision.datasets import VOCDetection

    reference = {
        target["annotation"]["filename"]: (image, target["annotation"]["object"])
        for image, target in VOCDetection(str(voc_photographs), "2012", split)
    }
    assert len(reference) == len(samples[split])
    for sample in samples[split]:
        image, objects = reference[f"{sample.key.removeprefix('VOC2012/')}.jpg"]
        corners = [[float(o["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        assert np.array_equal(sample.image, np.asarray(image))
        boxes = present(sample.detection)
        assert np.array_equal(boxes.xyxy, np.array(corners) - [1, 1, 0, 0])
        assert [CLASSES[c] for c in boxes.classes] == [o["name"] for o in objects]
        assert boxes.difficult.tolist() == [o["difficult"] == "1" for o in objects]


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_those_that_torchvision_reads(
    voc_photographs: Path, samples: dict[str, list[Sample]], split: str
) -> None:
    from torchvision.datasets import VOCSegmentation

    reference = VOCSegmentation(str(voc_photographs), "2012", split)
    ours = {s.key.removeprefix("VOC2012/"): s.segmentation for s in samples[split] if s.segmentation is not None}
    assert sorted(ours) == sorted(Path(path).stem for path in reference.masks)
    for path, (_image, mask) in zip(reference.masks, reference, strict=True):
        assert np.array_equal(ours[Path(path).stem], np.asarray(mask))


def test_the_classes_of_box_and_mask_and_set_agree(samples: dict[str, list[Sample]]) -> None:
    """In these photographs every mask shows the classes of the boxes, including difficult ones."""
    for sample in samples["train"] + samples["val"]:
        boxed = set(present(sample.detection).classes.tolist())
        assert isinstance(sample.classification, np.ndarray)
        assert set(np.flatnonzero(sample.classification).tolist()) == boxed
        if sample.segmentation is not None:
            assert {int(v) - 1 for v in np.unique(sample.segmentation) if v not in {0, IGNORE}} == boxed


objects_strategy = st.lists(
    st.builds(VocObject, st.integers(0, 19), st.tuples(*[st.floats(0, 9), st.floats(0, 9)] * 2), st.booleans()),
    max_size=6,
)


@settings(deadline=None)
@given(objects_strategy)
def test_a_class_is_unknown_only_when_all_its_objects_are_difficult(objects: list[VocObject]) -> None:
    flags = {c: [o.difficult for o in objects if o.class_index == c] for c in range(len(CLASSES))}
    expected = [0 if not flags[c] else -1 if all(flags[c]) else 1 for c in range(len(CLASSES))]
    assert class_set(objects).tolist() == expected


@settings(deadline=None)
@given(objects_strategy)
def test_boxes_keep_order_and_difficulty_of_the_objects(objects: list[VocObject]) -> None:
    arrays = boxes(objects)
    assert arrays.xyxy.shape == (len(objects), 4)
    assert arrays.xyxy.dtype == np.float32
    assert arrays.classes.tolist() == [o.class_index for o in objects]
    assert arrays.difficult.tolist() == [o.difficult for o in objects]


@settings(deadline=None)
@given(st.integers(1, 32), st.integers(1, 24), st.data())
def test_a_box_covers_exactly_the_pixels_that_voc_means(xmax: int, ymax: int, data: st.DataObject) -> None:
    """VOC counts pixels from 1 and includes the last; a slice counts from 0 and excludes it."""
    xmin, ymin = data.draw(st.integers(1, xmax)), data.draw(st.integers(1, ymax))
    annotation = voc_annotation(voc_object("cow", xmin, ymin, xmax, ymax)).encode()
    left, top, right, bottom = map(int, parse_annotation(annotation, 32, 24, "a.xml")[0].xyxy)
    assert list(range(left, right)) == [x - 1 for x in range(xmin, xmax + 1)]
    assert list(range(top, bottom)) == [y - 1 for y in range(ymin, ymax + 1)]


def test_truncated_objects_are_objects_and_body_parts_are_not() -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    person = voc_object("person", 2, 2, 9, 9).replace("</object>", f"<truncated>1</truncated>{part}</object>")
    assert parse_annotation(voc_annotation(person).encode(), 32, 24, "a.xml") == [VocObject(14, (1, 1, 9, 9), False)]


def test_fractional_coordinates_may_exceed_the_edge_by_less_than_a_pixel() -> None:
    annotation = voc_annotation(voc_object("cow", 0.6, 1, 32.4, 24)).encode()
    assert parse_annotation(annotation, 32, 24, "a.xml")[0].xyxy == (0, 0, 32, 24)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (voc_annotation(voc_object("unicorn", 1, 1, 5, 5)), "unknown class 'unicorn'"),
        (voc_annotation(voc_object("dog", 3, 5, 40, 24)), r"the box \(3, 5, 40, 24\) of a dog is empty or outside"),
        (voc_annotation(voc_object("dog", 9, 5, 8, 24)), "of a dog is empty or outside of the 32x24 image"),
        (voc_annotation(voc_object("dog", float("nan"), 5, 8, 24)), "of a dog is empty or outside of the 32x24 image"),
        (voc_annotation(voc_object("dog", 3, 5, 20, 24), width=64), "it describes 64x24 pixels, and the image has 32"),
        (voc_annotation("<object><name>dog</name></object>"), "an object has no bndbox/xmin"),
        (voc_annotation("<object>"), "mismatched tag"),
    ],
)  # fmt: skip
def test_a_wrong_annotation_is_named(voc_root: Path, annotation: str, message: str) -> None:
    (voc_root / "Annotations/a.xml").write_text(annotation)
    dataset = open_voc(str(voc_root), "train")
    with pytest.raises(DatasetError, match=f"Annotations/a.xml: .*{message}") as caught:
        dataset[0]
    assert caught.value.hint


@pytest.mark.parametrize(
    ("mask", "mode", "message"),
    [
        (np.full((24, 31), 12), "P", "the mask has 31x24 pixels, its image 32x24"),
        (np.full((24, 32), 21), "P", "the mask holds class 21, and VOC has 20"),
        (np.full((24, 32), 12), "RGB", "a mask must be a palette image of class indices, not RGB"),
    ],
)
def test_a_wrong_mask_is_named(voc_root: Path, mask: np.ndarray, mode: str, message: str) -> None:
    write_mask(voc_root / "SegmentationClass/a.png", mask, mode)
    with pytest.raises(DatasetError, match=f"SegmentationClass/a.png: {message}"):
        open_voc(str(voc_root), "train")[0]


def test_a_truncated_image_is_named(voc_root: Path) -> None:
    (voc_root / "JPEGImages/a.jpg").write_bytes(jpeg()[:-200])
    with pytest.raises(DatasetError, match=r"JPEGImages/a\.jpg: damaged, or not an image \(.*truncated"):
        open_voc(str(voc_root), "train")[0]


@pytest.mark.parametrize("name", ["JPEGImages/b.jpg", "Annotations/b.xml", "SegmentationClass/a.png"])
def test_a_listed_file_that_is_absent_is_found_on_opening(voc_root: Path, name: str) -> None:
    (voc_root / name).unlink()
    with pytest.raises(DatasetError, match=rf"{name}: missing, but the lists train.txt name it") as caught:
        open_voc(str(voc_root), "train")
    assert "ImageSets/*/train.txt" in str(caught.value.hint)


def test_an_image_without_a_mask_carries_the_other_labels(voc_root: Path) -> None:
    dataset = open_voc(str(voc_root), "train")
    assert [dataset.labels(i) for i in (0, 1)] == [
        {"classification", "detection", "segmentation"},
        {"classification", "detection"},
    ]
    assert dataset[1].segmentation is None
    assert dataset[1].detection is not None


def test_an_image_of_the_segmentation_list_alone_needs_no_boxes(voc_root: Path) -> None:
    """VOC 2012's Main lists hold no image of 2007; its Segmentation lists do."""
    (voc_root / "ImageSets/Main/val.txt").unlink()
    (voc_root / "Annotations/c.xml").unlink()
    dataset = open_voc(str(voc_root), "val")
    sample = dataset[0]
    assert dataset.info.classes == {"segmentation": ("background", *CLASSES)}
    assert (sample.classification, sample.detection, dataset.labels(0)) == (None, None, frozenset({"segmentation"}))


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_uri_may_name_the_year_the_devkit_or_the_folder_around(voc_root: Path, up: int) -> None:
    folder = [voc_root, *voc_root.parents][up]
    assert open_voc(str(folder), "train").key(0) == "VOC2012/a"


def test_several_years_are_not_mixed_up(voc_root: Path) -> None:
    shutil.copytree(voc_root, voc_root.with_name("VOC2007"))
    with pytest.raises(DatasetError, match=r"holds several years \(VOC2007, VOC2012\)") as caught:
        open_voc(str(voc_root.parent), "train")
    assert f"e.g. {voc_root}" in str(caught.value.hint)


def test_an_unknown_split_is_answered_with_the_known_ones(voc_root: Path) -> None:
    with pytest.raises(DatasetError, match=r"no list test.txt") as caught:
        open_voc(str(voc_root), "test")
    assert caught.value.hint == "it has the splits train, val"


def test_a_folder_without_voc_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"{tmp_path}: no VOC2012/JPEGImages in it"):
        open_voc(str(tmp_path), "train")
