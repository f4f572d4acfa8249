"""The embedded scenes are repeatable, their three labels agree, and the splits share no digits."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import present

from mtl_cloud.datasets.formats.embedded import CLASSES, SIZE, EmbeddedDataset, open_embedded
from mtl_cloud.errors import DatasetError

TRAIN, VAL = EmbeddedDataset("train"), EmbeddedDataset("val")
indices = st.integers(0, len(TRAIN) - 1)


@given(indices)
@settings(max_examples=40, deadline=None)
def test_class_boxes_and_mask_agree(index: int) -> None:
    """The mask's class regions are the boxes' tiles; the class is that of the largest; nothing overlaps."""
    sample = TRAIN[index]
    boxes, mask = present(sample.detection), present(sample.segmentation)
    rebuilt = np.zeros((SIZE, SIZE), dtype=np.uint8)
    areas = []
    for (left, top, right, bottom), class_index in zip(boxes.xyxy.astype(int).tolist(), boxes.classes, strict=True):
        inside = mask[top:bottom, left:right]
        assert not rebuilt[top:bottom, left:right].any()
        assert (inside[inside > 0] == class_index + 1).all()
        assert inside.any(axis=0).all()
        assert inside.any(axis=1).all()
        rebuilt[top:bottom, left:right] = inside
        areas.append((right - left) * (bottom - top))
    assert np.array_equal(rebuilt, mask)
    assert sample.classification == boxes.classes[int(np.argmax(areas))]
    assert areas.count(max(areas)) == 1
    assert not boxes.difficult.any()


@given(indices)
@settings(max_examples=20, deadline=None)
def test_a_scene_has_one_large_tile_and_up_to_two_small_ones(index: int) -> None:
    sample = TRAIN[index]
    boxes = present(sample.detection).xyxy
    sides = boxes[:, 2] - boxes[:, 0]
    assert sample.image.shape == (SIZE, SIZE, 3)
    assert sample.image.dtype == np.uint8
    assert 1 <= len(sides) <= 3
    assert 44 <= sides[0] <= 56
    assert all(24 <= side <= 32 for side in sides[1:])


def digest_program(split: str) -> str:
    return (
        "import hashlib; from mtl_cloud.datasets.formats.embedded import EmbeddedDataset as E\n"
        f"s = [E({split!r})[i] for i in (511, 0, 7)]\n"
        "print(hashlib.sha256(b''.join(x.image.tobytes() + x.segmentation.tobytes() for x in s)).hexdigest())"
    )


def test_scenes_are_the_same_in_another_process_and_in_any_order() -> None:
    import hashlib

    first = {i: VAL[i] for i in (0, 7, 511)}
    pixels = [first[i].image.tobytes() + present(first[i].segmentation).tobytes() for i in (511, 0, 7)]
    ours = hashlib.sha256(b"".join(pixels))
    theirs = subprocess.run([sys.executable, "-c", digest_program("val")], capture_output=True, text=True, check=True)
    assert theirs.stdout.strip() == ours.hexdigest()


def test_scenes_differ_between_indices_splits_and_seeds() -> None:
    scenes = [TRAIN[0], TRAIN[1], VAL[0], EmbeddedDataset("train", seed=1)[0]]
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_no_handwriting_is_in_both_splits() -> None:
    """Checked on the digits themselves: scikit-learn's 1,797 are all different, and each is used by one split."""
    train, val = ({digit.tobytes() for digit in dataset.digits.images} for dataset in (TRAIN, VAL))
    assert (len(train), len(val), len(train & val)) == (1437, 360, 0)
    assert np.unique(VAL.digits.classes).tolist() == list(range(10))


def test_source_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    assert np.array_equal(VAL.digits.classes, source.target[::5])
    assert np.array_equal(VAL.digits.images, np.round(source.images[::5] * 255 / 16))


def test_every_class_occurs_often_enough_to_be_learned() -> None:
    counts = np.bincount(np.array([TRAIN[i].classification for i in range(400)]), minlength=len(CLASSES))
    assert counts.min() >= 20


def test_a_loader_worker_that_is_sent_the_dataset_needs_no_scikit_learn() -> None:
    code = (
        "import pickle, sys\n"
        "sys.modules['sklearn'] = None\n"
        "sys.stdout.buffer.write(pickle.load(sys.stdin.buffer)[3].image.tobytes())\n"
    )
    sent = pickle.dumps(EmbeddedDataset("train"))
    assert len(sent) < 200_000
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert done.stdout == TRAIN[3].image.tobytes()


def test_samples_end_where_the_split_ends() -> None:
    for index in (-1, len(VAL)):
        with pytest.raises(IndexError):
            VAL[index]


def test_other_splits_and_a_uri_are_refused() -> None:
    with pytest.raises(DatasetError, match="embedded has no split 'test'"):
        open_embedded(None, "test")
    with pytest.raises(DatasetError, match="has no files, but `uri: /data` is given"):
        open_embedded("/data", "train")
