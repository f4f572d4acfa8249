"""PASCAL VOC as the VOCdevkit lays it out: sets of classes, boxes and masks of the same images.

Facts of the devkit (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf) that are kept here: pixel
coordinates start at 1 and include the last pixel; ``difficult`` objects are neither trained on nor counted, and an
image whose objects of a class are all difficult is neither a positive nor a negative of that class; ``truncated``
objects are objects like any other; mask value 255 is the border that does not count.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import IGNORE, Boxes, DatasetInfo, Sample
from mtl_cloud.datasets.files import decode_mask, decode_rgb, local_path, read_bytes, read_lines
from mtl_cloud.errors import DatasetError
from mtl_cloud.tasks import Task

__all__ = ["CLASSES", "VocDataset", "open_voc"]

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of the mask values 1 to 20."""

_INDEX = {name: i for i, name in enumerate(CLASSES)}
_FOLDERS = {"image": ("JPEGImages", "jpg"), "boxes": ("Annotations", "xml"), "mask": ("SegmentationClass", "png")}


@dataclass(frozen=True)
class VocObject:
    """One ``object`` of an annotation file."""

    class_index: int
    xyxy: tuple[float, float, float, float]
    """0-based, right and bottom exclusive."""
    difficult: bool


@dataclass(frozen=True)
class VocDataset:
    """The images of a split's Main list (classes and boxes) and Segmentation list (masks)."""

    root: Path
    info: DatasetInfo
    ids: tuple[str, ...]
    annotated: frozenset[str]
    """Images with classes and boxes."""
    masked: frozenset[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image_id = self.ids[index]
        image = decode_rgb(read_bytes(self._path("image", image_id)), str(self._path("image", image_id)))
        height, width = image.shape[:2]
        objects = self._objects(image_id, width, height) if image_id in self.annotated else None
        return Sample(
            key=self.key(index),
            image=image,
            classification=None if objects is None else class_set(objects),
            detection=None if objects is None else boxes(objects),
            segmentation=self._mask(image_id, (height, width)) if image_id in self.masked else None,
        )

    def key(self, index: int) -> str:
        return f"{self.root.name}/{self.ids[index]}"

    def labels(self, index: int) -> frozenset[Task]:
        return frozenset(_tasks(self.ids[index] in self.annotated, self.ids[index] in self.masked))

    def _objects(self, image_id: str, width: int, height: int) -> list[VocObject]:
        path = self._path("boxes", image_id)
        return parse_annotation(read_bytes(path), width, height, str(path))

    def _mask(self, image_id: str, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
        path = self._path("mask", image_id)
        mask = decode_mask(read_bytes(path), str(path))
        if mask.shape != shape:
            raise _damaged(
                path, f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}"
            )
        if (wrong := (mask > len(CLASSES)) & (mask != IGNORE)).any():
            raise _damaged(path, f"the mask holds class {mask[wrong][0]}, and VOC has {len(CLASSES)}")
        return mask

    def _path(self, kind: str, image_id: str) -> Path:
        folder, suffix = _FOLDERS[kind]
        return self.root / folder / f"{image_id}.{suffix}"


def open_voc(uri: str | None, split: str) -> VocDataset:
    """A split (``train``, ``val``, ``trainval``, …) of the VOC year below ``uri``: VOCdevkit, or the year's folder.

    Raises
    ------
    DatasetError
        The folder or the lists are not there, or a list names an image, annotation or mask that is absent.
    """
    root = _find_year(local_path(uri or "VOCdevkit"))
    main, segmentation = (_read_list(root, kind, split) for kind in ("Main", "Segmentation"))
    if not main and not segmentation:
        raise DatasetError(f"{root}/ImageSets: no list {split}.txt with images", hint=_splits_hint(root))
    ids = tuple(sorted(main | segmentation))
    _assert_present(root, "image", ids, split)
    _assert_present(root, "boxes", main, split)
    _assert_present(root, "mask", segmentation, split)
    annotated = frozenset(ids) & _stems(root, "boxes")
    known = _tasks(bool(annotated), bool(segmentation))
    classes: dict[Task, tuple[str, ...]] = {task: _task_classes(task) for task in known}
    return VocDataset(root, DatasetInfo("voc", split, classes, multi_label=True), ids, annotated, segmentation)


def parse_annotation(data: bytes, width: int, height: int, source: str) -> list[VocObject]:
    """The objects of an annotation file of an image of ``width`` x ``height`` pixels.

    Raises
    ------
    DatasetError
        Not such a file, made for an image of another size, an unknown class, or a box outside of the image.
    """
    try:
        # The expat of every supported Python bounds the expansion of entities.
        root = ET.fromstring(data)  # noqa: S314
        stated = int(root.findtext("size/width") or 0), int(root.findtext("size/height") or 0)
        objects = [_parse_object(element) for element in root.iterfind("object")]
    except (ET.ParseError, ValueError) as error:
        raise _damaged(source, str(error)) from error
    if all(stated) and stated != (width, height):
        raise _damaged(source, f"it describes {stated[0]}x{stated[1]} pixels, and the image has {width}x{height}")
    return [_clipped(o, width, height, source) for o in objects]


def class_set(objects: Sequence[VocObject]) -> npt.NDArray[np.float32]:
    """[20] multi-label target: 1 present, 0 absent, -1 when all objects of the class are difficult."""
    target = np.zeros(len(CLASSES), dtype=np.float32)
    target[[o.class_index for o in objects if o.difficult]] = -1
    target[[o.class_index for o in objects if not o.difficult]] = 1
    return target


def boxes(objects: Sequence[VocObject]) -> Boxes:
    """The objects as arrays, in the file's order."""
    return Boxes(
        xyxy=np.array([o.xyxy for o in objects], dtype=np.float32).reshape(-1, 4),
        classes=np.array([o.class_index for o in objects], dtype=np.int64),
        difficult=np.array([o.difficult for o in objects], dtype=np.bool_),
    )


def _parse_object(element: ET.Element) -> VocObject:
    name = element.findtext("name", "").strip()
    if name not in _INDEX:
        raise ValueError(f"unknown class {name!r}")
    left, top, right, bottom = (float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = element.findtext("difficult", "0").strip() == "1"
    return VocObject(_INDEX[name], (left - 1, top - 1, right, bottom), difficult)


def _text(element: ET.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"an object has no {path}")
    return text


def _clipped(voc_object: VocObject, width: int, height: int, source: str) -> VocObject:
    # Annotators' fractions may reach over the edge by less than a pixel; more than that is a mistake.
    left, top, right, bottom = voc_object.xyxy
    inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    overshoot = max(abs(a - b) for a, b in zip(voc_object.xyxy, inside, strict=True))
    if not (overshoot <= 1 and inside[0] < inside[2] and inside[1] < inside[3]):  # so that NaN is refused too
        name = CLASSES[voc_object.class_index]
        place = f"({left + 1:g}, {top + 1:g}, {right:g}, {bottom:g})"
        raise _damaged(source, f"the box {place} of a {name} is empty or outside of the {width}x{height} image")
    return VocObject(voc_object.class_index, inside, voc_object.difficult)


def _damaged(source: Path | str, what: str) -> DatasetError:
    return DatasetError(f"{source}: {what}", hint="correct the file, or set `on_bad_sample: skip`")


def _find_year(folder: Path) -> Path:
    candidates = [folder, *sorted(folder.glob("VOC2*")), *sorted(folder.glob("VOCdevkit/VOC2*"))]
    years = [path for path in candidates if (path / "JPEGImages").is_dir()]
    if not years:
        raise DatasetError(f"{folder}: no VOC2012/JPEGImages in it", hint="`uri:` names the folder VOCdevkit")
    if len(years) > 1:
        names = ", ".join(path.name for path in years)
        raise DatasetError(f"{folder}: holds several years ({names})", hint=f"name one in `uri:`, e.g. {years[-1]}")
    return years[0].resolve()


def _read_list(root: Path, kind: str, split: str) -> frozenset[str]:
    path = root / "ImageSets" / kind / f"{split}.txt"
    return frozenset(line.split()[0] for line in read_lines(path)) if path.is_file() else frozenset()


def _splits_hint(root: Path) -> str:
    names = sorted({path.stem for path in root.glob("ImageSets/*/*.txt") if "_" not in path.stem})
    return f"it has the splits {', '.join(names)}" if names else "the lists come with VOC's archive: unpack it whole"


def _assert_present(root: Path, kind: str, ids: Sequence[str] | frozenset[str], split: str) -> None:
    folder, suffix = _FOLDERS[kind]
    if absent := sorted(set(ids) - _stems(root, kind)):
        raise DatasetError(
            f"{root / folder / absent[0]}.{suffix}: not there, but the lists {split}.txt name it "
            f"({len(absent)} such files)",
            hint=f"unpack VOC's archive again, or take the names out of {root}/ImageSets/*/{split}.txt",
        )


def _stems(root: Path, kind: str) -> frozenset[str]:
    folder, suffix = _FOLDERS[kind]
    return frozenset(path.stem for path in (root / folder).glob(f"*.{suffix}"))


def _tasks(annotated: bool, masked: bool) -> Iterator[Task]:
    if annotated:
        yield "classification"
        yield "detection"
    if masked:
        yield "segmentation"


def _task_classes(task: Task) -> tuple[str, ...]:
    return ("background", *CLASSES) if task == "segmentation" else CLASSES
