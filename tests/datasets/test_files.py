"""Files of a dataset: images of every colour space, reads at an offset, and errors that name the file."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_harness import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtl_cloud.datasets.base import DecodeHint
from mtl_cloud.datasets.files import RandomReader, decode_mask, decode_rgb, decode_scaled, read_bytes, read_lines
from mtl_cloud.errors import DatasetError

RED = (200, 30, 40)


def encoded(mode: str, file_format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), RED).convert(mode, palette=Image.Palette.ADAPTIVE).save(file, file_format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "file_format"), [("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG")]
)
def test_every_colour_space_becomes_the_same_rgb(mode: str, file_format: str) -> None:
    image = decode_rgb(encoded(mode, file_format), "x")
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - RED).max() <= 6


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_three_equal_channels(mode: str) -> None:
    image = decode_rgb(encoded(mode, "PNG"), "x")
    assert image.shape == (4, 6, 3)
    assert (image == image[..., :1]).all()


@settings(deadline=None)
@given(cut=st.integers(0, 700))
def test_a_cut_image_is_named(cut: int) -> None:
    data = jpeg(64, 64)
    with pytest.raises(DatasetError, match=r"^a\.jpg: damaged, or not an image"):
        decode_rgb(data[: min(cut, len(data) - 50)], "a.jpg")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_bytes_decode_or_are_a_dataset_error(data: st.DataObject) -> None:
    damaged = bytearray(encoded("P", "PNG") if data.draw(st.booleans()) else jpeg())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of metadata and of sizes that the damage made huge
        try:
            image = decode_rgb(bytes(damaged), "a.jpg")
        except DatasetError:
            return
    assert image.ndim == 3


def test_a_mask_is_its_palette_indices() -> None:
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6)
    image = Image.fromarray(indices, "L").convert("P")
    image.putpalette([7] * 768)
    file = io.BytesIO()
    image.save(file, "PNG")
    assert np.array_equal(decode_mask(file.getvalue(), "x"), indices)


def test_a_reader_reads_at_any_offset_and_again_after_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)))
    reader = RandomReader(path)
    assert reader.read(10, 3) == b"\n\x0b\x0c"
    assert pickle.loads(pickle.dumps(reader)).read(255, 1) == b"\xff"
    with pytest.raises(DatasetError, match="data: ends within a member, at byte 256"):
        reader.read(250, 10)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent: cannot be read \(No such file or directory\)"):
        RandomReader(tmp_path / "absent").read(0, 1)
    with pytest.raises(DatasetError, match=r"cannot be read \(Is a directory\)"):
        read_bytes(tmp_path)
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match=r"list.txt: not a text file"):
        read_lines(tmp_path / "list.txt")


def test_whole_jpegs_have_the_pixels_that_pillow_gives_them(voc_photographs: Path, imagenet_photographs: Path) -> None:
    files = sorted(voc_photographs.rglob("*.jpg"))[:40]
    files += sorted(imagenet_photographs.rglob("*.JPEG"))[:60]
    for file in files:
        assert np.array_equal(decode_rgb(file.read_bytes(), "x"), np.asarray(Image.open(file).convert("RGB")))


@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_a_scaled_jpeg_is_the_mean_of_its_pixels(voc_photographs: Path, divisor: int) -> None:
    """Within one level of 255, on average, of Pillow's box filter over the fully decoded image."""
    differences = []
    for file in sorted(voc_photographs.rglob("*.jpg"))[:20]:
        full = Image.open(file).convert("RGB")
        shrunk, shape = decode_scaled(file.read_bytes(), "x", lambda height, _: DecodeHint(divisor, height))
        assert (shape, shrunk.shape[:2]) == ((full.height, full.width), _ceil(full.height, full.width, divisor))
        inside = np.s_[: full.height // divisor, : full.width // divisor]
        difference = np.abs(shrunk.astype(int)[inside] - np.asarray(full.reduce(divisor)).astype(int)[inside])
        differences.append(difference.mean())
    assert np.mean(differences) < 1


def _ceil(height: int, width: int, divisor: int) -> tuple[int, int]:
    return -(-height // divisor), -(-width // divisor)


def test_a_truncated_jpeg_is_refused_by_every_decoder() -> None:
    for hint in (DecodeHint(2, 100), DecodeHint(1, 16)):
        with pytest.raises(DatasetError, match=r"cut\.jpg: damaged, or not an image"):
            decode_scaled(jpeg(200, 100)[:-400], "cut.jpg", lambda *_, hint=hint: hint)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}, {}])
def test_rows_from_the_top_are_those_of_the_whole_however_the_jpeg_is_coded(options: dict[str, Any]) -> None:
    """Progressive ones are decoded in full: their first rows are only known at the end."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", exif=b"Exif\0\0" + b"\xff\xc0" * 40, **options)
    part, shape = decode_scaled(file.getvalue(), "x", lambda *_: DecodeHint(1, 30))
    assert shape == (90, 60)
    assert np.array_equal(part[:30], np.asarray(Image.open(file))[:30])
    assert part[60:].any() == ("progressive" in options)


def test_a_jpeg_with_fill_bytes_before_its_markers_is_decoded_in_full() -> None:
    """ITU-T T.81, B.1.1.2 allows any number of them; libjpeg skips them."""
    data = jpeg(90, 60)
    filled = data[:2] + b"\xff\xff" + data[2:]
    part, _ = decode_scaled(filled, "x", lambda *_: DecodeHint(1, 30))
    assert np.array_equal(part, np.asarray(Image.open(io.BytesIO(data))))
