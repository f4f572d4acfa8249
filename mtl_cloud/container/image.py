"""The container image: what goes into it, the reference that follows from that, and how it is built.

The tag is a digest of the content, so a reference never means two images, and everyone who has this package (the
planner, a launcher, the CI) knows the reference without asking anybody.
"""

from __future__ import annotations

import hashlib
import platform as host
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from mtl_cloud import __version__
from mtl_cloud.container.engine import Engine
from mtl_cloud.errors import EngineError, ImageError
from mtl_cloud.names import REPOSITORY

__all__ = [
    "BASE_IMAGE",
    "BASE_VARIABLE",
    "CLOUD_PLATFORM",
    "BuildOptions",
    "ImageContent",
    "build_image",
    "image_content",
    "layer_sizes",
    "local_platform",
]

BASE_IMAGE = "python:3.11-slim"
BASE_VARIABLE = "MTL_CLOUD_BASE_IMAGE"
CLOUD_PLATFORM = "linux/amd64"
"""Platform of the catalogue's GPU instances."""

_PACKAGE = Path(__file__).parents[1]
_CLONE = _PACKAGE.parent
_LOCK = "requirements.lock"
_ALONE = re.compile(r"(torch|torchvision|triton|sympy|mpmath|networkx|(nvidia|cuda)-[\w-]+)==")
"""torch and what only torch needs: gigabytes, which get a layer of their own."""
_CARRIED = {"docker/Dockerfile", "docker/.dockerignore", f"docker/{_LOCK}", "bootstrap/mtl-cloud.yaml"}
"""Files that only the wheel has in the package, beside what they are in the source tree."""
_ENTRY = re.compile(r"\n(?=\S)")
"""Before each entry of the lock file but the first: the lines of an entry's hashes are indented."""
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class ImageContent:
    """All that an image is made of."""

    base: str
    """Reference of the base image: a Debian or Ubuntu with Python 3.11 or newer and its venv module."""
    platform: str
    """Such as ``linux/amd64``."""
    recipe: Path
    """The folder with the Dockerfile and the lock file."""
    package: Path
    """The folder with the package's files."""
    requirements: tuple[str, ...]
    """Entries of the lock file, as pip reads them: ``name==version ; marker`` and the hashes of the version's files."""

    @cached_property
    def tag(self) -> str:
        """``<version>-<12 hex digits>``: the version for people, the digest for the content."""
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(len(part).to_bytes(8, "big") + part)
        return f"{__version__.replace('+', '-')}-{digest.hexdigest()[:12]}"

    @property
    def pins(self) -> list[str]:
        """The requirements without their hashes."""
        return [entry.partition(" \\\n")[0] for entry in self.requirements]

    @property
    def reference(self) -> str:
        """The image's reference on this machine."""
        return f"{REPOSITORY}:{self.tag}"

    def _parts(self) -> Iterator[bytes]:
        yield from (text.encode() for text in (self.base, self.platform, *self.requirements))
        yield (self.recipe / "Dockerfile").read_bytes()
        for path in sorted(self.package.rglob("*")):
            name = path.relative_to(self.package)
            if path.is_file() and "__pycache__" not in name.parts and name.as_posix() not in _CARRIED:
                yield name.as_posix().encode()
                yield path.read_bytes()


def image_content(environ: Mapping[str, str], *, base: str | None = None, platform: str | None = None) -> ImageContent:
    """The content of this package's image.

    The base is by default that of ``MTL_CLOUD_BASE_IMAGE``, or a slim Python; the platform, this machine's.
    """
    recipe = _CLONE / "docker" if _is_clone() else _PACKAGE / "docker"
    return ImageContent(
        base=base or environ.get(BASE_VARIABLE) or BASE_IMAGE,
        platform=platform or local_platform(),
        recipe=recipe,
        package=_PACKAGE,
        requirements=_locked(recipe),
    )


def local_platform() -> str:
    """The platform of containers that run here without emulation."""
    machine = host.machine()
    return f"linux/{_MACHINES.get(machine, machine)}"


def _is_clone() -> bool:
    """Is the package used from its source tree, where the files lie that a wheel is built from?"""
    return (_CLONE / "docker" / "Dockerfile").is_file()


def _locked(recipe: Path) -> tuple[str, ...]:
    lines = (recipe / _LOCK).read_text(encoding="utf-8").splitlines()
    entries = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    return tuple(_ENTRY.split(entries))


# --- at the engine ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Build options for this network. They affect neither the image nor its tag."""

    ca_bundle: Path | None = None
    """PEM file of the authorities that the package index's certificate is checked with."""
    pip_config: Path | None = None
    """pip's configuration: a company's index and proxy."""
    network: str | None = None
    """The engine's network mode for the build, e.g. ``host``."""
    wheel: Path | None = None
    """The package's wheel, if there is one already; it must be of this very package."""


def build_image(content: ImageContent, engine: Engine, options: BuildOptions = BuildOptions()) -> str:
    """Build the image, with the engine's progress on standard error; returns its reference.

    Raises
    ------
    ImageError
        The wheel or the image cannot be built.
    """
    with TemporaryDirectory(prefix="mtl-cloud-image-") as folder:
        context = Path(folder)
        _make_context(content, context, options.wheel)
        try:
            engine.show(*_build_command(content, options), folder)
        except EngineError as error:
            raise ImageError(f"{content.reference}: {error}", hint=error.hint) from error
    return content.reference


def layer_sizes(engine: Engine, reference: str) -> list[tuple[int, str]]:
    """Bytes of each layer of an image that the engine has, with the instruction that made it, the largest first."""
    lines = engine.ask("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", reference)
    sizes = (line.partition(" ") for line in lines.splitlines())
    return sorted(((int(size), _instruction(made_by)) for size, _, made_by in sizes if size != "0"), reverse=True)


def _instruction(made_by: str) -> str:
    """Without the shell and the build arguments that an engine writes before a command."""
    _, shell, command = made_by.partition("/bin/sh -c ")
    return f"RUN {command.removesuffix(' # buildkit').strip()}" if shell else made_by or "the base image"


def _build_command(content: ImageContent, options: BuildOptions) -> list[str]:
    arguments = {"BASE_IMAGE": content.base, "VERSION": __version__, "REVISION": _revision()}
    secrets = {"ca": options.ca_bundle, "pip": options.pip_config}
    return [
        *("build", "--tag", content.reference, "--platform", content.platform),
        *(part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")),
        *(part for name, path in secrets.items() if path for part in ("--secret", f"id={name},src={path}")),
        *(("--network", options.network) if options.network else ()),
    ]


def _make_context(content: ImageContent, context: Path, wheel: Path | None) -> None:
    alone = [entry for entry in content.requirements if _ALONE.match(entry)]
    others = [entry for entry in content.requirements if not _ALONE.match(entry)]
    for name, entries in (("torch.txt", alone), ("requirements.txt", others)):
        (context / name).write_text("".join(f"{entry}\n" for entry in entries))
    for name in ("Dockerfile", ".dockerignore"):
        (context / name).write_bytes((content.recipe / name).read_bytes())
    if wheel is None:
        _build_wheel(context)
    else:
        (context / wheel.name).write_bytes(wheel.read_bytes())


def _build_wheel(folder: Path) -> None:
    """Build the wheel from the source tree, or fetch this version's wheel through pip."""
    source = str(_CLONE) if _is_clone() else f"mtl-cloud=={__version__}"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), source]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(
            f"the wheel of {source} cannot be built: {done.stderr.strip()}", hint="give a wheel with --wheel"
        )


def _revision() -> str:
    """The commit of the source tree; ``unknown`` outside of one."""
    command = ["git", "-C", str(_CLONE), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
