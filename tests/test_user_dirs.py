"""A cache's file is there whole, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtl_cloud.user_dirs import whole_file


def test_a_reader_finds_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "cache"
    with whole_file(path) as file:
        file.write(b"old")
        assert not path.exists()
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def break_off(path: Path, error: type[BaseException]) -> None:
    with whole_file(path) as file:
        file.write(b"ne")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_is_broken_off_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"old")
    with pytest.raises(error):
        break_off(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
