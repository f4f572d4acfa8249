"""The text files of ILSVRC2012: classes of the validation images, and names of the classes.

They are searched beside the images, in ``meta/`` there or one level up, and in the folders of the devkit's archive:

* ``ILSVRC2012_validation_ground_truth.txt``: line n is the devkit's class id of validation image n;
* ``map_clsloc.txt``: wnid, that id, name;
* ``synset_words.txt``: wnid, names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mtl_cloud.datasets.files import read_lines
from mtl_cloud.errors import DatasetError

__all__ = ["DEVKIT_FILES", "GroundTruth", "class_names"]

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_MAP = "map_clsloc.txt"
_WORDS = "synset_words.txt"
DEVKIT_FILES = (_TRUTH, _MAP, _WORDS)
_FOLDERS = (".", "meta", "../meta", "data", "ILSVRC2012_devkit_t12/data")
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@dataclass(frozen=True)
class GroundTruth:
    """Maps a validation image to its wnid."""

    path: Path
    ids: tuple[str, ...]
    wnids: dict[str, str]
    """Devkit id -> wnid."""

    @classmethod
    def read(cls, root: Path) -> Self:
        """Raises ``DatasetError`` if one of the two files is not found from ``root``."""
        truth, mapping = (_find(root, name) for name in (_TRUTH, _MAP))
        if truth is None or mapping is None:
            raise DatasetError(
                f"{root}: the validation images are not in class folders, and {_TRUTH if truth is None else _MAP} "
                "is not beside them",
                hint=f"put {_TRUTH} (of the devkit) and {_MAP} (wnid, id, name) there, or into meta/",
            )
        return cls(truth, tuple(read_lines(truth)), {line.split()[1]: line.split()[0] for line in _rows(mapping, 2)})

    def wnid(self, file_name: str) -> str:
        """The wnid of an image such as ``ILSVRC2012_val_00000001.JPEG``. Raises ``DatasetError`` if there is none."""
        match = _VAL_NAME.fullmatch(file_name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(self.ids):
            raise DatasetError(
                f"{file_name}: not one of the {len(self.ids)} validation images that {self.path} labels",
                hint="name images ILSVRC2012_val_00000001.JPEG and so on, or put them into class folders",
            )
        wnid = self.wnids.get(self.ids[number - 1])
        if wnid is None:
            raise DatasetError(
                f"{self.path}, line {number}: the id {self.ids[number - 1]!r} is not in {_MAP}",
                hint="take both files from the same devkit",
            )
        return wnid


def class_names(wnids: Sequence[str], root: Path) -> tuple[str, ...]:
    """A unique name of each class; its wnid if the name is unknown."""
    words = _words(root)
    names = [words.get(wnid, wnid) for wnid in wnids]
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))


def _words(root: Path) -> dict[str, str]:
    if path := _find(root, _WORDS):
        rows = (line.split(maxsplit=1) for line in _rows(path, 2))
        return {wnid: names.split(",")[0] for wnid, names in rows}
    if path := _find(root, _MAP):
        return {wnid: name.replace("_", " ") for wnid, _id, name in (line.split(maxsplit=2) for line in _rows(path, 3))}
    return {}


def _rows(path: Path, columns: int) -> list[str]:
    lines = read_lines(path)
    if short := [n for n, line in enumerate(lines, 1) if len(line.split()) < columns]:
        raise DatasetError(f"{path}, line {short[0]}: {columns} columns are expected", hint="get the file again")
    return lines


def _find(root: Path, name: str) -> Path | None:
    return next((path for folder in _FOLDERS if (path := root / folder / name).is_file()), None)
