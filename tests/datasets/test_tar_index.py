"""The index of a tar, compared with tarfile on nested tars, and errors for damaged tars."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from dataset_harness import tar_bytes, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_cloud.datasets.tar_index import default_cache, index_tar, inner_tars
from mtl_cloud.errors import DatasetError

contents = st.dictionaries(
    st.from_regex(r"[a-z0-9_]{1,120}\.JPEG", fullmatch=True), st.binary(max_size=1500), min_size=1, max_size=4
)


def nested(classes: dict[str, dict[str, bytes]]) -> bytes:
    return tar_bytes({f"{name}.tar": tar_bytes(members) for name, members in classes.items()})


@settings(max_examples=50, deadline=None)
@given(classes=st.dictionaries(st.from_regex(r"n[0-9]{8}", fullmatch=True), contents, min_size=1, max_size=3))
def test_each_member_is_at_the_offset_in_the_index(
    tmp_path_factory: pytest.TempPathFactory, classes: dict[str, dict[str, bytes]]
) -> None:
    """Includes names over 100 characters, whose headers take several blocks."""
    folder = tmp_path_factory.mktemp("tar")
    (folder / "a.tar").write_bytes(data := nested(classes))
    index = index_tar(folder / "a.tar", folder / "cache")
    found = {
        name.decode(): data[offset : offset + size]
        for name, offset, size in zip(index.names.tolist(), index.offsets, index.sizes, strict=True)
    }
    assert found == {f"{wnid}/{name}": image for wnid, members in classes.items() for name, image in members.items()}
    assert list(found) == sorted(found)
    assert inner_tars(folder / "a.tar") == sorted(classes)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_index_agrees_with_tarfile_whatever_the_format(tmp_path: Path, tar_format: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as tar:
        for name in ("./b.JPEG", "a.JPEG"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = sorted((m.name.removeprefix("./"), m.offset_data, m.size) for m in tar)
    index = index_tar(tmp_path / "a.tar", tmp_path / "cache")
    assert [(n.decode(), o, s) for n, o, s in zip(*(a.tolist() for a in index), strict=True)] == expected


def test_a_second_opening_reads_the_cache_and_a_changed_tar_does_not(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.tar", tmp_path / "cache"
    write_tar(path, {"a.JPEG": b"one"})
    first = index_tar(path, cache)
    (entry,) = cache.iterdir()
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert index_tar(path, cache).names.tolist() == first.names.tolist()  # the tar itself is zeros by now

    write_tar(path, {"b.JPEG": b"two"})
    assert index_tar(path, cache).names.tolist() == [b"b.JPEG"]
    assert entry.exists()


def test_a_damaged_cache_is_scanned_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.JPEG": b"one"})
    index_tar(tmp_path / "a.tar", tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_bytes(entry.read_bytes()[:50])
    assert index_tar(tmp_path / "a.tar", tmp_path / "cache").names.tolist() == [b"a.JPEG"]


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.JPEG": b"one"})
    (tmp_path / "file").write_text("not a folder")
    assert index_tar(tmp_path / "a.tar", tmp_path / "file" / "cache").names.tolist() == [b"a.JPEG"]


def test_the_cache_is_the_users() -> None:
    assert default_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/mtl-cloud/tar-index")
    assert default_cache({}) == Path.home() / ".cache/mtl-cloud/tar-index"


TWO_CLASSES = nested({"n1": {"n1_1.JPEG": b"1" * 700, "n1_2.JPEG": b"2" * 700}, "n2": {"n2_1.JPEG": b"3" * 700}})
END_OF_DATA = len(TWO_CLASSES.rstrip(b"\0"))


@given(cut=st.integers(0, END_OF_DATA))
@settings(max_examples=60, deadline=None)
def test_a_tar_truncated_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (folder / "a.tar").write_bytes(TWO_CLASSES[:cut])
    with pytest.raises(DatasetError, match=r"a\.tar") as caught:
        index_tar(folder / "a.tar", folder / "cache")
    assert "download it again" in str(caught.value.hint)


@given(where=st.integers(0, END_OF_DATA // 512), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_header_with_a_flipped_byte_never_hides_members(
    tmp_path_factory: pytest.TempPathFactory, where: int, data: st.DataObject
) -> None:
    """Either the damage is found, or it is within the images and the index is unchanged."""
    folder = tmp_path_factory.mktemp("flip")
    damaged = bytearray(TWO_CLASSES)
    damaged[512 * where + data.draw(st.integers(0, 156))] ^= data.draw(st.integers(1, 255))
    (folder / "a.tar").write_bytes(damaged)
    try:
        names = index_tar(folder / "a.tar", folder / "cache").names.tolist()
    except DatasetError:
        return
    assert names == [b"n1/n1_1.JPEG", b"n1/n1_2.JPEG", b"n2/n2_1.JPEG"]


def test_a_tar_without_files_and_a_file_that_is_no_tar_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {})
    with pytest.raises(DatasetError, match="the tar holds no files"):
        index_tar(tmp_path / "a.tar", tmp_path)
    (tmp_path / "b.tar").write_bytes(b"x" * 5000)
    with pytest.raises(DatasetError, match="not a whole tar"):
        index_tar(tmp_path / "b.tar", tmp_path)
