"""``mtl-cloud data`` as it is typed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from dataset_harness import write_cifar_batches
from PIL import Image

from mtl_cloud import cli


@pytest.fixture
def original(tmp_path: Path) -> Path:
    write_cifar_batches(tmp_path / "cifar-10-batches-py")
    return tmp_path / "cifar-10-batches-py"


@pytest.fixture
def prepared(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert cli.main(["data", "prepare", "cifar10", str(original), str(tmp_path / "out"), "--workers", "1"]) == 0
    capsys.readouterr()
    return tmp_path / "out"


def test_prepare_says_what_it_made_and_how_a_job_names_it(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "out")
    assert cli.main(["data", "prepare", "cifar10", str(original), target, "--workers", "1"]) == 0
    output = capsys.readouterr().out
    assert "train: 100 samples in 1 shards" in output
    assert "unusual in train: 80" in output  # the fixture's batches hold the same noise
    assert "… and 60 more" in output
    assert f"dataset:\n  name: cifar10\n  uri: {target}" in output


def test_prepare_as_json_is_the_manifest(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "data",
        "prepare",
        "cifar10",
        str(original),
        str(tmp_path / "out"),
        "--workers",
        "1",
        "--split",
        "test",
    ]
    assert cli.main([*arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "out/manifest.json").read_text())
    assert {name: split["samples"] for name, split in shown["splits"].items()} == {"test": 20}


def test_a_bad_original_ends_it_with_the_code_of_data(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = pickle.loads((original / "data_batch_3").read_bytes())
    (original / "data_batch_3").write_bytes(pickle.dumps(batch | {"labels": [11, *batch["labels"][1:]]}, protocol=2))
    assert cli.main(["data", "prepare", "cifar10", str(original), str(tmp_path / "out")]) == 9
    assert "data_batch_3/0 has label 11" in capsys.readouterr().err


def test_inspect_shows_counts_sizes_and_classes(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "inspect", str(prepared)]) == 0
    output = capsys.readouterr().out
    assert "images of class  train  test" in output
    assert "airplane            10     2" in output
    assert cli.main(["data", "inspect", str(prepared), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["splits"]["train"]["per_class"] == {"classification": [10] * 10}
    assert shown["splits"]["test"]["pixels"]["width_median"] == 32


def test_a_sheet_shows_samples(prepared: Path, tmp_path: Path) -> None:
    assert cli.main(["data", "inspect", str(prepared), "--sheet", str(tmp_path / "sheet.png"), "--split", "test"]) == 0
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 142, 8 * 128, 3)
    assert all(sheet[14:142, 128 * i : 128 * (i + 1)].std() > 10 for i in range(8))


def test_verify_names_what_is_damaged_and_fails(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "verify", str(prepared)]) == 0
    assert "4 files, all intact" in capsys.readouterr().out
    shard = prepared / "test-000000.tar"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    assert cli.main(["data", "verify", str(prepared)]) == 9
    output = capsys.readouterr().out
    assert f"{shard}: wrong checksum\n  test_batch/" in output
    assert "1 of 4 files are damaged" in output
    assert cli.main(["data", "verify", str(prepared), "--json"]) == 9
    (damage,) = json.loads(capsys.readouterr().out)["damaged"]
    assert (damage["file"], len(damage["samples"])) == (str(shard), 1)
