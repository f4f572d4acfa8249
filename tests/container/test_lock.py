"""The lock file that the image is built from is fresh and whole, and its licences are listed."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mtl_cloud.container.image import image_content

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "docker" / "requirements.lock"
RENEW = "run `make lock`"
LICENCES = runpy.run_path(str(ROOT / "docker" / "licences.py"))


def pins(lock: str) -> dict[str, set[str]]:
    """Versions by package: more than one where they differ by Python's version."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def asked_for(lock: str) -> set[str]:
    """The packages of which uv noted that they are required by pyproject.toml itself, and not only by each other."""
    name, direct = "", set()
    for line in lock.splitlines():
        name = line.partition("==")[0] if line[:1].isalnum() else name
        if line.endswith("mtl-cloud (pyproject.toml)"):
            direct.add(name)
    return direct


def declared(extra: str | None = None) -> Iterator[Requirement]:
    """The package's requirements, or those of an extra; extras that it includes are followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        requirement = Requirement(line)
        if requirement.name == "mtl-cloud":
            for included in sorted(requirement.extras):  # a set, in another order in each process
                yield from declared(included)
        else:
            yield requirement


REQUIREMENTS = [*declared(), *declared("image")]


def test_the_lock_is_made_from_todays_dependencies() -> None:
    assert asked_for(LOCK.read_text()) == {requirement.name for requirement in REQUIREMENTS}, RENEW


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_is_met_by_what_is_locked(requirement: Requirement) -> None:
    versions = pins(LOCK.read_text())[requirement.name]
    assert versions == set(requirement.specifier.filter(versions, prereleases=True)), RENEW


def test_every_entry_has_hashes_and_no_entry_an_address() -> None:
    for entry in image_content({}).requirements:
        first, *hashes = entry.split(" \\\n    ")
        assert str(Requirement(first).specifier).startswith("==")
        assert hashes
        assert not [line for line in hashes if not re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line)]
    assert "://" not in LOCK.read_text()


def test_every_locked_package_is_listed_with_a_licence_that_is_not_copyleft() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| (\d\S*) \| (.+) \|$", LICENCES["PAGE"].read_text(), re.MULTILINE)
    locked = pins(LOCK.read_text())
    assert [name for name, *_ in rows] == sorted(locked), RENEW
    assert not [name for name, version, _ in rows if version not in locked[name]], RENEW
    assert not [row for row in rows if LICENCES["COPYLEFT"].search(row[-1])]


@pytest.mark.parametrize(
    ("metadata", "licence", "copyleft"),
    [
        ({"license_expression": "MIT", "license": "BSD"}, "MIT", False),
        ({"classifier": ["License :: OSI Approved :: BSD License", "Topic :: Multimedia"]}, "BSD License", False),
        ({"license": "MIT License\n\nCopyright (c) the authors"}, "MIT License", False),
        ({"license": "GPLv2+"}, "GPLv2+", True),
        ({"license_expression": "MPL-2.0"}, "MPL-2.0", True),
        (
            {"classifier": ["License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)"]},
            "GNU Lesser General Public License v3 (LGPLv3)",
            True,
        ),
    ],
)
def test_a_licence_is_read_from_the_metadata(metadata: dict[str, object], licence: str, *, copyleft: bool) -> None:
    assert LICENCES["licence"]({"name": "example", **metadata}) == licence
    assert bool(LICENCES["COPYLEFT"].search(licence)) is copyleft


def test_a_package_that_states_no_licence_must_be_read_by_a_person() -> None:
    with pytest.raises(SystemExit, match="example: its metadata states no licence"):
        LICENCES["licence"]({"name": "example"})


@pytest.mark.slow
def test_resolving_again_gives_the_locked_versions(tmp_path: Path) -> None:
    """With the locked versions preferred, so that a new release elsewhere changes nothing."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if shutil.which("uv", path=path) is None:
        pytest.skip("uv is not installed")
    again = tmp_path / LOCK.name
    shutil.copy(LOCK, again)
    command = [str(ROOT / "docker" / "make-lock"), str(again)]
    subprocess.run(command, env={**os.environ, "PATH": path}, check=True)
    assert pins(again.read_text()) == pins(LOCK.read_text()), RENEW
