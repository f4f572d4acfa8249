"""Damage to a prepared dataset is found, and its samples are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from mtl_cloud.datasets import Dataset
from mtl_cloud.datasets.preparation.verify import Damage, total_bytes, verify
from mtl_cloud.datasets.shards import open_shards, read_manifest
from mtl_cloud.errors import DatasetError
from mtl_cloud.storage import open_storage

Prepared = tuple[str, Path, Callable[[str], Dataset]]


def test_an_intact_dataset_is_read_in_full_without_findings(prepared: Prepared) -> None:
    storage = open_storage(prepared[1])
    seen: list[int] = []
    assert verify(storage, checked=seen.append) == []
    manifest = (prepared[1] / "manifest.json").stat().st_size
    assert sum(seen) == total_bytes(read_manifest(storage)) == sum(entry.size for entry in storage.list("")) - manifest


@examples(25, reuse_fixtures=True)
@given(data=st.data())
@pytest.mark.parametrize("prepared", ["voc"], indirect=True)
def test_no_flipped_bit_goes_unseen(prepared: Prepared, data: st.DataObject) -> None:
    """Also in padding and headers, which no sample uses."""
    _, root, _ = prepared
    path = root / data.draw(st.sampled_from(sorted(path.name for path in root.glob("[tv]*.*"))))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :])
    found = verify(open_storage(root))
    path.write_bytes(whole)
    assert [(damage.file, damage.what) for damage in found] == [(str(path), "wrong checksum")]


def test_samples_of_damaged_bytes_are_named_and_no_others(prepared: Prepared) -> None:
    _, root, _ = prepared
    dataset = open_shards(str(root), "train")
    for index in range(min(4, len(dataset))):
        shard, offset, _ = dataset.extent(index)
        path = root / dataset.shards[shard].key
        whole = path.read_bytes()
        path.write_bytes(whole[: offset + 1] + b"?" + whole[offset + 2 :])
        assert verify(open_storage(root)) == [Damage(str(path), "wrong checksum", (dataset.key(index),))]
        path.write_bytes(whole)
    assert verify(open_storage(root)) == []


def test_short_and_missing_shards_name_their_lost_samples(prepared: Prepared) -> None:
    _, root, _ = prepared
    dataset = open_shards(str(root), "train")
    path = root / dataset.shards[0].key
    inside = {dataset.key(i) for i in range(len(dataset)) if dataset.extent(i).shard == 0}
    path.write_bytes(path.read_bytes()[:100])
    (short,) = verify(open_storage(root))
    assert short.what == f"100 bytes instead of {dataset.shards[0].size}"
    path.unlink()
    (missing,) = verify(open_storage(root))
    assert (missing.what, set(missing.samples)) == ("missing", inside)
    assert set(short.samples) == inside


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no prepared dataset there \(no manifest.json\)"):
        verify(open_storage(tmp_path))
