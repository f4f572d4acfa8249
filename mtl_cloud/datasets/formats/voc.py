"""PASCAL VOC in the layout of VOCdevkit: sets of classes, boxes and masks of the same images.

Rules of the devkit (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf) that apply here: pixel coordinates
start at 1 and include the last pixel; ``difficult`` objects are neither trained on nor counted, and an image whose
objects of a class are all difficult is neither a positive nor a negative of that class; ``truncated`` objects are
treated like any other; mask value 255 is the border, which is ignored.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mtl_cloud.datasets.base import IGNORE, Boxes, DatasetInfo, HintFor, Sample, full_decode
from mtl_cloud.datasets.file_trees import FileTree, FolderTree
from mtl_cloud.datasets.files import decode_mask, decode_scaled, local_path, text_lines
from mtl_cloud.errors import DatasetError
from mtl_cloud.tasks import TASKS, Task

__all__ = ["CLASSES", "VocDataset", "open_voc", "open_voc_year", "voc_splits"]

Kind: TypeAlias = Literal["image", "boxes", "mask"]

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of the mask values 1 to 20."""

_INDEX = {name: i for i, name in enumerate(CLASSES)}
_FOLDERS: dict[Kind, tuple[str, str]] = {
    "image": ("JPEGImages", ".jpg"),
    "boxes": ("Annotations", ".xml"),
    "mask": ("SegmentationClass", ".png"),
}
_OF_OBJECTS: frozenset[Task] = frozenset(("classification", "detection"))


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

    files: FileTree
    """The files of one year: ``JPEGImages/`` and so on."""
    info: DatasetInfo
    ids: tuple[str, ...]
    annotated: frozenset[str]
    """Images with classes and boxes."""
    masked: frozenset[str]
    wanted: frozenset[Task] = frozenset(TASKS)
    """Labels to read, if there are any."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, full_decode)

    def load(self, index: int, hint_for: HintFor) -> Sample:
        labels = self.labels(index)
        image, (height, width) = decode_scaled(self.read("image", index), self.where("image", index), hint_for)
        objects = self.objects(index, width, height) if labels & _OF_OBJECTS else []
        return Sample(
            key=self.key(index),
            image=image,
            classification=class_set(objects) if "classification" in labels else None,
            detection=boxes(objects) if "detection" in labels else None,
            segmentation=self._mask(index, (height, width)) if "segmentation" in labels else None,
            stored_shape=(height, width),
        )

    def key(self, index: int) -> str:
        return f"{self.files.name}/{self.ids[index]}"

    def labels(self, index: int) -> frozenset[Task]:
        return self.wanted.intersection(_tasks(self.ids[index] in self.annotated, self.ids[index] in self.masked))

    def with_tasks(self, tasks: frozenset[Task]) -> VocDataset:
        """The same samples; only labels of ``tasks`` are read."""
        return replace(self, wanted=self.wanted & tasks)

    def objects(self, index: int, width: int, height: int) -> list[VocObject]:
        """The objects of an annotated image of ``width`` x ``height`` pixels. Raises ``DatasetError``."""
        return parse_annotation(self.read("boxes", index), width, height, self.where("boxes", index))

    def read(self, kind: Kind, index: int) -> bytes:
        """A file of the sample as stored. Raises ``DatasetError``."""
        return self.files.read(_path(kind, self.ids[index]))

    def where(self, kind: Kind, index: int) -> str:
        return self.files.where(_path(kind, self.ids[index]))

    def size(self, kind: Kind, index: int) -> int:
        """Bytes of an existing file of the sample."""
        return self.files.size(_path(kind, self.ids[index]))

    def _mask(self, index: int, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
        where = self.where("mask", index)
        mask = decode_mask(self.read("mask", index), where)
        if mask.shape != shape:
            raise _damaged(
                where, f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}"
            )
        if (wrong := (mask > len(CLASSES)) & (mask != IGNORE)).any():
            raise _damaged(where, f"the mask holds class {mask[wrong][0]}, and VOC has {len(CLASSES)}")
        return mask


def open_voc(uri: str | None, split: str) -> VocDataset:
    """A split (``train``, ``val``, ``trainval``, …) of the VOC year below ``uri``: VOCdevkit, or the year's folder.

    Raises
    ------
    DatasetError
        The folder or the lists are missing, or a list names an image, annotation or mask that is missing.
    """
    return open_voc_year(FolderTree(_find_year(local_path(uri or "VOCdevkit"))), split)


def open_voc_year(files: FileTree, split: str) -> VocDataset:
    """A split of one year's files. Raises ``DatasetError`` as in ``open_voc``."""
    main, segmentation = (_read_list(files, kind, split) for kind in ("Main", "Segmentation"))
    if not main and not segmentation:
        raise DatasetError(
            f"{files.where('ImageSets')}: no list {split}.txt with images", hint=_splits_hint(voc_splits(files))
        )
    ids = tuple(sorted(main | segmentation))
    _assert_present(files, "image", ids, split)
    _assert_present(files, "boxes", main, split)
    _assert_present(files, "mask", segmentation, split)
    annotated = frozenset(ids) & _stems(files, "boxes")
    known = _tasks(bool(annotated), bool(segmentation))
    classes: dict[Task, tuple[str, ...]] = {task: _task_classes(task) for task in known}
    return VocDataset(files, DatasetInfo("voc", split, classes, multi_label=True), ids, annotated, segmentation)


def voc_splits(files: FileTree) -> list[str]:
    """Names of a year's splits."""
    names = files.names("ImageSets/Main") | files.names("ImageSets/Segmentation")
    return sorted(name.removesuffix(".txt") for name in names if name.endswith(".txt") and "_" not in name)


def parse_annotation(data: bytes, width: int, height: int, source: str) -> list[VocObject]:
    """The objects of an annotation file of an image of ``width`` x ``height`` pixels.

    Raises
    ------
    DatasetError
        ``data`` is not such a file, is for an image of another size, or has an unknown class or a box outside of it.
    """
    try:
        # The expat of every supported Python limits the expansion of entities.
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
    left, top, right, bottom = (float(_text(element, side)) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = element.findtext("difficult", "0").strip() == "1"
    return VocObject(_INDEX[name], (left - 1, top - 1, right, bottom), difficult)


def _text(element: ET.Element, side: str) -> str:
    box = element.find("bndbox")  # step by step: ElementTree evaluates longer paths in Python
    text = None if box is None else box.findtext(side)
    if text is None:
        raise ValueError(f"an object has no bndbox/{side}")
    return text


def _clipped(voc_object: VocObject, width: int, height: int, source: str) -> VocObject:
    # Fractional coordinates may exceed the edge by up to a pixel; more than that is an error.
    left, top, right, bottom = voc_object.xyxy
    inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    overshoot = max(abs(a - b) for a, b in zip(voc_object.xyxy, inside, strict=True))
    if not (overshoot <= 1 and inside[0] < inside[2] and inside[1] < inside[3]):  # so that NaN is rejected too
        name = CLASSES[voc_object.class_index]
        place = f"({left + 1:g}, {top + 1:g}, {right:g}, {bottom:g})"
        raise _damaged(source, f"the box {place} of a {name} is empty or outside of the {width}x{height} image")
    return VocObject(voc_object.class_index, inside, voc_object.difficult)


def _damaged(source: str, what: str) -> DatasetError:
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


def _read_list(files: FileTree, kind: str, split: str) -> frozenset[str]:
    folder, name = f"ImageSets/{kind}", f"{split}.txt"
    if name not in files.names(folder):
        return frozenset()
    path = f"{folder}/{name}"
    return frozenset(line.split()[0] for line in text_lines(files.read(path), files.where(path)))


def _splits_hint(names: Sequence[str]) -> str:
    return f"it has the splits {', '.join(names)}" if names else "the lists are part of VOC's archive: unpack all of it"


def _assert_present(files: FileTree, kind: Kind, ids: Collection[str], split: str) -> None:
    if absent := sorted(set(ids) - _stems(files, kind)):
        raise DatasetError(
            f"{files.where(_path(kind, absent[0]))}: missing, but the lists {split}.txt name it "
            f"({len(absent)} such files)",
            hint=f"unpack VOC's archive again, or remove the names from {files.where('ImageSets')}/*/{split}.txt",
        )


def _stems(files: FileTree, kind: Kind) -> frozenset[str]:
    folder, suffix = _FOLDERS[kind]
    return frozenset(name.removesuffix(suffix) for name in files.names(folder) if name.endswith(suffix))


def _path(kind: Kind, image_id: str) -> str:
    folder, suffix = _FOLDERS[kind]
    return f"{folder}/{image_id}{suffix}"


def _tasks(annotated: bool, masked: bool) -> Iterator[Task]:
    if annotated:
        yield "classification"
        yield "detection"
    if masked:
        yield "segmentation"


def _task_classes(task: Task) -> tuple[str, ...]:
    return ("background", *CLASSES) if task == "segmentation" else CLASSES
