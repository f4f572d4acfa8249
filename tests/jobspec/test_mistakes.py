"""Broken job files: every mistake is reported at its line, without terms of our libraries.

The expected messages are beside each file. ``MTL_CLOUD_UPDATE_GOLDEN=1`` rewrites them, for a person to review.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mtl_cloud.errors import SpecError
from mtl_cloud.jobspec.load import load_job, parse_job

BROKEN = sorted((Path(__file__).parent / "broken").glob("*.yaml"))


def refusal(path: Path) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_job(path.read_bytes(), source=path.name, base=path.parent)
    return caught.value


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_file_is_refused_with_the_expected_messages(path: Path) -> None:
    said = f"{refusal(path)}\n"
    golden = path.with_suffix(".txt")
    if os.environ.get("MTL_CLOUD_UPDATE_GOLDEN"):
        golden.write_text(said, encoding="utf-8")
    assert said == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_each_of_two_or_more_mistakes_points_at_a_line_that_has_its_field(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    problems = refusal(path).problems
    assert len(problems) >= 2
    for problem in problems:
        fields = re.findall(r"[A-Za-z_]\w*|\d+(?!\])", problem.path)
        at = lines[problem.line - 1]
        assert 1 <= problem.column <= len(at) + 1
        absent = problem.line == problem.column == 1
        assert absent or any(field in at for field in fields) or at.lstrip().startswith("- ")


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_no_message_mentions_libraries(path: Path) -> None:
    assert not re.search(
        r"pydantic|https?://|Input should|Value error|valid (string|integer)|_error|tag:", str(refusal(path))
    )


def test_there_are_ten_broken_files_at_least() -> None:
    assert len(BROKEN) >= 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "job.yaml:1:1: a job must be a mapping of fields, but this file holds nothing"),
        (b"# only a comment\n", "job.yaml:1:1: a job must be a mapping of fields, but this file holds nothing"),
        (b"- a\n- b\n", "job.yaml:1:1: a job must be a mapping of fields, but this file holds a list"),
        (b"just words", "job.yaml:1:1: a job must be a mapping of fields, but this file holds a single value"),
        (b"name: a\n\tdataset: b\n", "job.yaml:2:1: not YAML: found character '\\t' that cannot start any token"),
        (b"a: [1, 2\nb: 3\n", "job.yaml:2:2: not YAML: expected ',' or ']', but got ':'"),
        (b"name: a\ndataset: \xff\xfe\n", "job.yaml:2:1: not text: invalid start byte"),
        (b"a: 1\n---\nb: 2\n", "job.yaml:2:1: not YAML: but found another document"),
        (b"a: " + b"[" * 5000, "job.yaml:1:1: nested too deeply to be a job"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_one_error_with_its_place(text: bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(text, source="job.yaml", base=Path())
    assert str(caught.value).startswith(message)
    assert len(caught.value.problems) == 1


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none.yaml: cannot be read: No such file or directory; `mtl-cloud init`"):
        load_job(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        load_job(tmp_path)
