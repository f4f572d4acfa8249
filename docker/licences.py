"""Write docs/licences.md: the licence of each package in the lock file, as the package's own metadata states it.

The newest pip, which uv brings, tells what it would install; it fetches the metadata alone. uv must be on the PATH.
Ends with 1 if a licence is copyleft.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from mtl_cloud.container.image import image_content

PAGE = Path(__file__).parents[1] / "docs" / "licences.md"
READ = {
    "cuda-toolkit": "none: it holds no files",
    "faster-coco-eval": "Apache-2.0",
}
"""Read in the packages themselves, since their metadata states no licence."""
COPYLEFT = re.compile(r"GPL|GNU|MPL|Mozilla|EPL|Eclipse|EUPL|CDDL|CeCILL|SSPL|-SA\b")
HEAD = """\
# Licences of what the image installs

`make lock` made this from the metadata of the packages in `docker/requirements.lock`, for Linux on x86_64 and Python
3.11. None is copyleft, and `make lock` fails when one is. The base image has licences of its own, not listed here.

The wheels of numpy and scipy bundle runtime libraries of GCC: libgfortran, under the GPL with the GCC runtime library
exception, and libquadmath, under the LGPL. The nvidia-* packages come under NVIDIA's own terms; read them before you
publish an image. quadprog (GPL) and qpsolvers (LGPL) are installed for the tests alone, as a peer of a loss weighting.

| package | version | licence |
|---|---|---|
"""


def main() -> None:
    pins = image_content({}).pins
    packages = sorted(metadata_of(pins), key=name_of)
    if missing := {Requirement(pin).name for pin in pins} - set(map(name_of, packages)):
        sys.exit(f"not for this machine: {', '.join(sorted(missing))}; run this on Linux on x86_64")
    rows = [(name_of(package), package["version"], licence(package)) for package in packages]
    PAGE.write_text(HEAD + "".join(f"| {name} | {version} | {stated} |\n" for name, version, stated in rows))
    if copyleft := [f"{name} ({stated})" for name, _, stated in rows if COPYLEFT.search(stated)]:
        sys.exit(f"copyleft: {', '.join(copyleft)}")


def metadata_of(pins: Sequence[str]) -> list[dict[str, Any]]:
    """Core metadata of the packages, as JSON; those that are not for this machine are left out."""
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--quiet", "--report=-"]
    command = ["uv", "tool", "run", "--quiet", "--python", sys.executable, "pip", "install", *options, *pins]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return [item["metadata"] for item in json.loads(done.stdout)["install"]]


def name_of(package: dict[str, Any]) -> str:
    return re.sub(r"[-_.]+", "-", package["name"]).lower()


def licence(package: dict[str, Any]) -> str:
    """In the order of what is most exact: the SPDX expression, the classifiers, the first line of the free text."""
    classifiers = [text for text in package.get("classifier", ()) if text.startswith("License :: OSI Approved :: ")]
    stated = package.get("license_expression") or ", ".join(text.rpartition(" :: ")[2] for text in classifiers)
    stated = stated or package.get("license", "").partition("\n")[0].strip() or READ.get(name_of(package), "")
    if not stated:
        sys.exit(f"{package['name']}: its metadata states no licence; read it in the package, and add it to READ")
    return stated


if __name__ == "__main__":
    main()
