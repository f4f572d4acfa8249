"""The contenders of ``data_loading.py``: functions that yield the number of images of each batch, without end.

All read the same JPEGs: a random crop of 8 to 100 % of the area to 224 pixels, mirrored for every second image, 64 to a
batch. The peers follow their documentation, with Pillow and torchvision, and return uint8. *ImageFolder, floats* also
normalises on the host, as torchvision's and PyTorch's training examples do. Those for detection place whole images at a
random scale and offset, with their boxes. Ours returns crops, which the device resizes and mirrors; *on a CPU* includes
that work, done by the training process. Peers import nothing of mtl_cloud, so that they can run under another
interpreter.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH, SIZE = 64, 224
Images = Iterator[int]


# --- the decoders' own limits, on bytes in memory ---------------------------------------------------------------------


def _files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "images").rglob("*.JPEG"))]


def decode_simplejpeg(folder: Path, **options: bool) -> Images:
    import simplejpeg

    files = _files(folder)
    while True:
        for data in files:
            simplejpeg.decode_jpeg(data, "RGB", **options)
            yield 1


def decode_fast(folder: Path, workers: int) -> Images:  # noqa: ARG001  # limits are of one process
    return decode_simplejpeg(folder, fastdct=True, fastupsample=True)


def decode_exact(folder: Path, workers: int) -> Images:  # noqa: ARG001
    return decode_simplejpeg(folder)


def decode_as_ours(folder: Path, workers: int) -> Images:  # noqa: ARG001
    """Decodes only the part of each image that our crops show."""
    from mtl_cloud.datasets.files import decode_scaled
    from mtl_cloud.jobspec.job import AugmentSpec
    from mtl_cloud.train.data.transforms import SampleRng, decode_hint, draw_crop

    files, rngs, augment = _files(folder), SampleRng(0), AugmentSpec()
    for epoch in itertools.count():
        for number, data in enumerate(files):
            rng = rngs.at(epoch, number)
            decode_scaled(
                data, "", lambda *shape, rng=rng: decode_hint(shape, draw_crop(shape, SIZE, augment, rng), SIZE)
            )
            yield 1


def decode_pillow(folder: Path, workers: int) -> Images:  # noqa: ARG001
    from PIL import Image

    files = _files(folder)
    while True:
        for data in files:
            Image.open(io.BytesIO(data)).convert("RGB")
            yield 1


# --- ours -------------------------------------------------------------------------------------------------------------


def _ours(name: str, uri: str, workers: int, *, whole: bool = False, **training: Any) -> Images:
    """``whole``: also do the device's work, on the CPU."""
    import torch

    from mtl_cloud.datasets import open_dataset
    from mtl_cloud.datasets.shards.locality import shards_of
    from mtl_cloud.jobspec.job import DatasetSpec, TrainingSpec
    from mtl_cloud.train.data.loader import Collate, training_batches
    from mtl_cloud.train.data.sampler import BatchSampler

    tasks = ("detection",) if name == "voc" else None
    dataset = open_dataset(DatasetSpec(name=name, uri=uri, tasks=tasks), "train")
    spec = TrainingSpec(image_size=SIZE, batch_size=BATCH, loader_workers=workers, **training)
    sampler = BatchSampler((len(dataset),), BATCH, 100_000, 0, "random")
    collate = Collate(dataset.info.classes, dataset.info.multi_label)
    batches = training_batches(dataset, spec, collate, sampler, start=0, pin=False, shards=shards_of(dataset))
    return (len(batch.to(torch.device("cpu")) if whole else batch) for batch in batches)


def ours_folder(folder: Path, workers: int) -> Images:
    return _ours("imagenet", str(folder / "ours"), workers, fit="crop")


def ours_folder_whole(folder: Path, workers: int) -> Images:
    return _ours("imagenet", str(folder / "ours"), workers, whole=True, fit="crop")


def ours_shards(folder: Path, workers: int) -> Images:
    return _ours("imagenet", str(folder / "shards"), workers, fit="crop")


def ours_s3(folder: Path, workers: int) -> Images:  # noqa: ARG001
    return _ours("imagenet", f"{os.environ['BENCHMARK_S3']}/shards", workers, fit="crop")


def ours_detection_folder(folder: Path, workers: int) -> Images:
    return _ours("voc", str(folder / "VOCdevkit"), workers)


def ours_detection_folder_whole(folder: Path, workers: int) -> Images:
    return _ours("voc", str(folder / "VOCdevkit"), workers, whole=True)


def ours_detection_shards(folder: Path, workers: int) -> Images:
    return _ours("voc", str(folder / "voc-shards"), workers)


# --- peers ------------------------------------------------------------------------------------------------------------


def _augment() -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(SIZE, antialias=True)
    augment: Callable[[Any], Any] = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    return augment


def _pillow(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def _endless(loader: Any) -> Images:
    while True:
        for images, _labels in loader:
            yield len(images)


def _loader(dataset: Any, workers: int, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=workers > 0, **options)


def imagefolder(folder: Path, workers: int) -> Images:
    return _imagefolder(folder, workers, _augment())


def imagefolder_floats(folder: Path, workers: int) -> Images:
    import torch
    from torchvision.transforms import v2

    normalize = v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return _imagefolder(folder, workers, v2.Compose([_augment(), v2.ToDtype(torch.float32, scale=True), normalize]))


def _imagefolder(folder: Path, workers: int, augment: Callable[[Any], Any]) -> Images:
    from torchvision.datasets import ImageFolder

    return _endless(_loader(ImageFolder(folder / "images", augment), workers, shuffle=True, drop_last=True))


def voc_detection(folder: Path, workers: int) -> Images:
    """Uses torchvision's joint transforms of images and boxes."""
    from torchvision.datasets import VOCDetection, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    place = [v2.ScaleJitter((SIZE, SIZE), (0.8, 1.2)), v2.RandomCrop(SIZE, pad_if_needed=True, fill=128)]
    augment = v2.Compose([v2.ToImage(), *place, v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()])
    dataset = VOCDetection(folder, image_set="train", transforms=augment)
    dataset = wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels"))
    return _endless(_loader(dataset, workers, shuffle=True, drop_last=True, collate_fn=_stacked))


def _stacked(samples: list[tuple[Any, dict[str, Any]]]) -> tuple[Any, list[dict[str, Any]]]:
    import torch

    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def _webdataset(urls: list[str], workers: int) -> Images:
    import webdataset

    augment = _augment()
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), nodesplitter=None, empty_check=False)
    dataset = dataset.shuffle(200).to_tuple("jpg", "cls").map_tuple(lambda data: augment(_pillow(data)), int)
    return _endless(_loader(dataset, workers))


def webdataset_folder(folder: Path, workers: int) -> Images:
    return _webdataset(sorted(str(path) for path in (folder / "tars").glob("*.tar")), workers)


def webdataset_s3(folder: Path, workers: int) -> Images:  # noqa: ARG001
    return _webdataset([f"pipe:curl -s '{url}'" for url in os.environ["BENCHMARK_TAR_URLS"].split()], workers)


def streaming_s3(folder: Path, workers: int) -> Images:
    from streaming import StreamingDataset

    augment = _augment()

    class Dataset(StreamingDataset):  # type: ignore[misc]  # a peer, which need not be installed
        def __getitem__(self, index: int) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return augment(_pillow(sample["jpg"])), sample["cls"]

    remote, local = f"{os.environ['BENCHMARK_S3']}/mds", str(folder / f"mds-{os.getpid()}")
    return _endless(_loader(Dataset(remote=remote, local=local, shuffle=True, batch_size=BATCH), workers))


def litdata_s3(folder: Path, workers: int) -> Images:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"  # noqa: SLF001  # its only way to a server without TLS
    augment = _augment()

    class Dataset(StreamingDataset):  # type: ignore[misc]  # a peer, which need not be installed
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            jpg, label = super().__getitem__(index)
            return augment(_pillow(jpg)), label

    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    cache = str(folder / f"litdata-{os.getpid()}")
    dataset = Dataset(f"{os.environ['BENCHMARK_S3']}/litdata", cache, shuffle=True, storage_options=options)
    return _endless(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers))


# --- the peers' own formats -------------------------------------------------------------------------------------------


def _labelled(folder: Path) -> list[tuple[Path, int]]:
    classes = sorted((folder / "images").iterdir())
    return [(path, label) for label, name in enumerate(classes) for path in sorted(name.iterdir())]


def write_mds(folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(columns={"jpg": "bytes", "cls": "int"}, out=str(folder / "mds"), size_limit=8 << 20) as writer:
        for path, label in _labelled(folder):
            writer.write({"jpg": path.read_bytes(), "cls": label})


def _read(item: tuple[str, int]) -> tuple[bytes, int]:
    return Path(item[0]).read_bytes(), item[1]


def write_litdata(folder: Path) -> None:
    import litdata

    inputs = [(str(path), label) for path, label in _labelled(folder)]
    litdata.optimize(_read, inputs, str(folder / "litdata"), chunk_bytes="8MB", num_workers=1)


WRITERS = {"mds": write_mds, "litdata": write_litdata}
LIMITS: dict[str, Callable[[Path, int], Images]] = {
    "decode, fastest": decode_fast,
    "decode": decode_exact,
    "decode, rows of the crop only": decode_as_ours,
    "decode, Pillow": decode_pillow,
}
OURS: dict[str, Callable[[Path, int], Images]] = {
    "ours, folder": ours_folder,
    "ours, folder, on a CPU": ours_folder_whole,
    "ours, shards": ours_shards,
    "ours, shards in S3": ours_s3,
    "ours, detection, folder": ours_detection_folder,
    "ours, detection, folder, on a CPU": ours_detection_folder_whole,
    "ours, detection, shards": ours_detection_shards,
}
PEERS: dict[str, Callable[[Path, int], Images]] = {
    "ImageFolder": imagefolder,
    "ImageFolder, floats": imagefolder_floats,
    "VOCDetection, detection": voc_detection,
    "webdataset": webdataset_folder,
    "webdataset, S3": webdataset_s3,
    "mosaicml-streaming, S3": streaming_s3,
    "litdata, S3": litdata_s3,
}
NEEDS = {
    "ImageFolder": "torchvision",
    "VOCDetection": "torchvision",
    "litdata": "litdata",
    "mosaicml": "streaming",
    "webdataset": "webdataset",
}
"""Prefix of a peer's name -> module."""
