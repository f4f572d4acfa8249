"""Photographs with labels, in the layouts of VOC, ImageNet and CIFAR-10, made of three that well-kept packages ship.

scikit-learn ships a pagoda (``china.jpg``, by danielbuechele) and a dahlia (``flower.jpg``, by vultilion), both under
CC BY 2.0; Matplotlib ships a portrait of Grace Hopper, by the US Navy and in the public domain. The outlines of the
pagoda, the dahlia and the officer are drawn by hand. Each image here is one thing or several, cut out along its outline
and set into a part of another photograph, so that every box and every mask is known to the pixel.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import sklearn.datasets
from dataset_harness import cifar_batch, voc_annotation, voc_object, write_devkit, write_mask
from PIL import Image, ImageDraw, ImageFilter

from mtl_cloud.datasets.formats.voc import CLASSES

__all__ = ["VOC_NAMES", "draw_scene", "write_cifar10", "write_imagenet", "write_voc"]

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

OUTLINES = {
    "pagoda": (
        "205,29 216,60 262,92 320,118 318,131 297,138 298,158 326,168 329,182 320,194 322,238 352,255 342,268 "
        "344,312 374,330 372,345 342,378 318,390 300,427 80,427 84,286 63,275 64,264 95,244 99,194 85,186 "
        "84,172 120,158 118,136 96,130 96,110 175,88 196,55"
    ),
    "dahlia": (
        "306,85 340,92 372,101 396,118 424,140 434,172 446,205 440,232 430,268 414,292 408,318 376,338 "
        "340,346 300,358 268,352 230,342 206,322 196,300 180,278 172,246 170,214 186,190 188,160 204,132 "
        "232,108 262,94"
    ),
    "officer": (
        "256,22 320,36 370,82 372,168 376,214 362,262 348,296 332,322 430,368 494,410 512,450 512,599 0,599 "
        "18,520 44,412 120,362 198,330 194,300 172,262 166,218 152,200 156,180 158,150 150,124 170,82 200,42"
    ),
}
"""Corners of each thing in its photograph: x, y in pixels."""
VOC_NAMES = {"pagoda": "train", "dahlia": "pottedplant", "officer": "person"}
"""VOC knows no buildings: the pagoda is called a train."""
IMAGENET_NAMES = {
    "dahlia": ("n11939491", "daisy"),
    "officer": ("n03763968", "military uniform"),
    "pagoda": ("n03877845", "palace"),
}
"""Thing -> a class of ImageNet that comes near."""
_SHAPES = ((375, 500), (500, 375), (333, 500), (500, 333), (281, 500))
"""Heights and widths as VOC has them."""
_BORDER = 2
_IGNORE = 255
_DIFFICULT_BELOW = 48
"""Height in pixels."""


@cache
def photographs() -> dict[str, Image.Image]:
    """The three, whole, by what they show."""
    china, flower = sklearn.datasets.load_sample_images().images
    hopper = Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    return {"pagoda": Image.fromarray(china), "dahlia": Image.fromarray(flower), "officer": hopper}


@dataclass(frozen=True)
class Cutout:
    """A thing without what is around it. The outline is white on black."""

    image: Image.Image
    outline: Image.Image

    def resized(self, height: int) -> Cutout:
        size = (max(1, round(self.image.width * height / self.image.height)), height)
        return Cutout(self.image.resize(size), self.outline.resize(size, Image.Resampling.NEAREST))


@cache
def cutouts() -> dict[str, Cutout]:
    found = {}
    for thing, image in photographs().items():
        corners = [tuple(map(int, corner.split(","))) for corner in OUTLINES[thing].split()]
        outline = Image.new("L", image.size)
        ImageDraw.Draw(outline).polygon(corners, fill=255)
        box = outline.getbbox()
        found[thing] = Cutout(image.crop(box), outline.crop(box))
    return found


@dataclass(frozen=True)
class Scene:
    """A photograph into which things were set."""

    image: Image.Image
    things: tuple[str, ...]
    owners: np.ndarray[Any, np.dtype[np.int8]]
    """[height, width]: the number of the thing that a pixel shows, or -1."""

    def objects(self) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
        """Things with their boxes (left, top, right, bottom), the right and bottom pixels not included."""
        for number, thing in enumerate(self.things):
            rows, columns = np.nonzero(self.owners == number)
            yield thing, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)

    def mask(self) -> Pixels:
        """VOC's class indices; along the outlines 255."""
        classes = np.zeros(self.owners.shape, np.uint8)
        for number, thing in enumerate(self.things):
            classes[self.owners == number] = CLASSES.index(VOC_NAMES[thing]) + 1
        owners = Image.fromarray((self.owners + 1).astype(np.uint8))
        window = 2 * _BORDER + 1
        near = [np.asarray(owners.filter(kind(window))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)]
        classes[near[0] != near[1]] = _IGNORE
        return classes


def draw_scene(draw: np.random.Generator) -> Scene:
    """Up to four things. One that would hide more than half of what is seen of another is left out."""
    height, width = _SHAPES[draw.integers(len(_SHAPES))]
    image = _background(draw, width, height)
    owners = np.full((height, width), -1, np.int8)
    things: list[str] = []
    for _ in range(draw.choice([1, 1, 2, 2, 3, 4])):
        thing = str(draw.choice(sorted(OUTLINES)))
        cut = cutouts()[thing].resized(int(np.exp(draw.uniform(np.log(32), np.log(0.9 * height)))))
        left, top = (int(draw.integers(-size // 4, max(1, whole - 3 * size // 4)))
                     for size, whole in zip(cut.image.size, (width, height), strict=True))  # fmt: skip
        shape = Image.new("L", (width, height))
        shape.paste(cut.outline, (left, top))
        covered = np.asarray(shape) > 0
        if any((owners[covered] == number).sum() > (owners == number).sum() / 2 for number in range(len(things))):
            continue
        image.paste(cut.image, (left, top), cut.outline)
        owners[covered] = len(things)
        things.append(thing)
    return Scene(image, tuple(things), owners)


def _background(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    """A part of the sky and the lake beside the pagoda, or of the leaves above the dahlia."""
    thing, area = [("pagoda", (380, 0, 640, 300)), ("dahlia", (0, 0, 640, 84))][draw.integers(2)]
    return photographs()[thing].crop(area).resize((width, height))


def write_voc(root: Path, train: int = 40, val: int = 24) -> Path:
    """``root/VOCdevkit/VOC2012`` with so many scenes. The last two for training have no mask."""
    year = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    names = [f"2012_{number:06d}" for number in range(train + val)]
    masked = [*names[: train - 2], *names[train:]]
    for number, name in enumerate(names):
        scene = draw_scene(np.random.default_rng(number))
        scene.image.save(year / f"JPEGImages/{name}.jpg", quality=90)
        (year / f"Annotations/{name}.xml").write_text(_annotation(scene, f"{name}.jpg"))
        if name in masked:
            write_mask(year / f"SegmentationClass/{name}.png", scene.mask())
    for split, part in (("train", names[:train]), ("val", names[train:]), ("trainval", names)):
        for kind, members in (("Main", part), ("Segmentation", [name for name in part if name in masked])):
            (year / f"ImageSets/{kind}/{split}.txt").write_text("\n".join(members) + "\n")
    return root


def _annotation(scene: Scene, filename: str) -> str:
    """VOC's corners are pixels of the object, counted from 1."""
    objects = [
        voc_object(VOC_NAMES[thing], left + 1, top + 1, right, bottom, difficult=int(bottom - top < _DIFFICULT_BELOW))
        for thing, (left, top, right, bottom) in scene.objects()
    ]
    text = voc_annotation(*objects, width=scene.image.width, height=scene.image.height)
    return text.replace("<annotation>", f"<annotation><filename>{filename}</filename>")


def write_imagenet(root: Path, train: int = 24, val: int = 8) -> Path:
    """``ILSVRC2012`` with so many images of each class, the devkit's files in ``meta``, and ``full_size``.

    Every eighth image is greyscale. The files are named, and the validation images labelled, as ILSVRC2012 does it.
    """
    things = {IMAGENET_NAMES[thing][0]: thing for thing in IMAGENET_NAMES}
    wnids = sorted(things)
    for split, count in (("train", train), ("val", val)):
        for number in range(count * len(wnids)):
            wnid = wnids[number % len(wnids)]
            name = f"{wnid}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{number + 1:08d}.JPEG"
            image = _view(np.random.default_rng([number, split == "val"]), things[wnid], 224)
            _save(image.convert("L") if number % 8 == 7 else image, root / "ILSVRC2012" / split / wnid / name)
    for wnid, thing in things.items():
        for mode in ("RGB", "L", "CMYK"):
            _save(photographs()[thing].convert(mode), root / "full_size" / wnid / f"{wnid}_{mode}.JPEG")
    names = [(wnid, IMAGENET_NAMES[things[wnid]][1]) for wnid in wnids]
    ids = " ".join(str(number % len(wnids) + 1) for number in range(val * len(wnids)))
    mapping = "".join(f"{wnid} {number} {name.replace(' ', '_')}\n" for number, (wnid, name) in enumerate(names, 1))
    write_devkit(root / "meta", ids, mapping)
    (root / "meta" / "synset_words.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in names))
    return root


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=75)


def _view(draw: np.random.Generator, thing: str, size: int) -> Image.Image:
    """A square part of the photograph around the thing, mirrored half of the time."""
    whole = photographs()[thing]
    left, top, right, bottom = _outline_box(thing)
    side = int(draw.uniform(0.5, 1.0) * min(right - left, bottom - top))
    x, y = int(draw.integers(left, right - side + 1)), int(draw.integers(top, bottom - side + 1))
    image = whole.crop((x, y, x + side, y + side)).resize((size, size))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else image


def _outline_box(thing: str) -> tuple[int, int, int, int]:
    corners = np.array([list(map(int, corner.split(","))) for corner in OUTLINES[thing].split()])
    return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())


PLACES = {
    "pagoda": [(205, 60), (205, 205), (205, 330), (450, 250), (450, 370)],
    "dahlia": [(308, 222), (100, 200), (380, 405)],
    "officer": [(256, 150), (256, 470)],
}
"""Ten places in the photographs, each of which is a class: x, y of their centres."""


def write_cifar10(root: Path, rows: int = 200, test_rows: int = 500) -> Path:
    """``cifar-10-batches-py`` with so many images a batch; those of the first batch and the test batch also as a pack.

    A class is a place in a photograph, seen from nearer or farther, moved, mirrored, darker or brighter, and in other
    colours: a linear model of the pixels finds it at times, a convolutional network mostly.
    """
    batches, pack = root / "cifar-10-batches-py", {}
    batches.mkdir(parents=True)
    train = {f"data_batch_{n}": _places(np.random.default_rng(n), rows) for n in range(1, 6)}
    test = {"test_batch": _places(np.random.default_rng(0), test_rows)}
    for split, parts in (("train", train), ("test", test)):
        for name, (images, labels) in parts.items():
            data = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
            (batches / name).write_bytes(cifar_batch(name, labels.tolist(), data=data))
        images, labels = next(iter(parts.values()))  # in a pack, a second batch would begin at image 10,000
        files = [_jpeg(image) for image in images]
        pack[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        pack[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        pack[f"{split}_labels"] = labels
    np.savez(root / "cifar10_full_jpeg.npz", **pack)  # type: ignore[arg-type]  # its stubs take ** for allow_pickle
    return root


def _places(draw: np.random.Generator, count: int) -> tuple[Pixels, Pixels]:
    """Images [count, 32, 32, 3] and their labels [count]."""
    labels = draw.permutation(np.arange(count) % 10).astype(np.uint8)
    return np.stack([_place(draw, label) for label in labels]), labels


def _place(draw: np.random.Generator, number: int) -> Pixels:
    thing, (x, y) = [(thing, centre) for thing, centres in PLACES.items() for centre in centres][number]
    half = int(draw.uniform(20, 44))
    x, y = (int(centre + draw.uniform(-0.6, 0.6) * half) for centre in (x, y))
    image = photographs()[thing].crop((x - half, y - half, x + half, y + half)).resize((32, 32))
    if draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    values = np.asarray(image, float)[..., draw.permutation(3)]
    return np.clip((values - 127.5) * draw.uniform(0.5, 1.2) + 127.5 + draw.uniform(-60, 60), 0, 255).astype(np.uint8)


def _jpeg(image: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return file.getvalue()
