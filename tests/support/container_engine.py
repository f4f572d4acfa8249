"""A container engine and images for tests, started and built on demand. All but the base image is removed afterwards.

The small image is built by the product's own recipe from fewer requirements: everything but torch, in seconds.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback_only import package_index
from run_harness import is_running, make_run
from waiting import PATIENCE_S, wait_for

from mtl_cloud.container.engine import ENGINE_VARIABLE, Engine
from mtl_cloud.container.image import BuildOptions, ImageContent, build_image, image_content
from mtl_cloud.errors import EngineError
from mtl_cloud.names import container_name
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import Storage

BASE = "mtl-base:bookworm"
_STATE = Path(tempfile.gettempdir()) / f"mtl-cloud-test-engine-{os.getuid()}"
_MAKE_BASE = Path(__file__).parents[2] / "docker" / "make-base"
_OF_PYDANTIC = {"annotated-types", "pydantic", "pydantic-core", "typing-extensions", "typing-inspection"}
_OF_RICH = {"markdown-it-py", "mdurl", "pygments", "rich"}
_SMALL = {"click", "fsspec", "pyyaml", *_OF_PYDANTIC, *_OF_RICH}
"""The package's dependencies without extras. If one is missing, `pip check` in the image's build fails."""
_BUNDLES = (os.environ.get("PIP_CERT", ""), "/etc/ssl/certs/ca-certificates.crt")


@contextmanager
def lent_engine() -> Iterator[Engine]:
    """The engine of this machine. If none answers, it is started, and the last test process that uses it stops it.

    Skips the test, with the reason, where none can be had.
    """
    _STATE.mkdir(exist_ok=True)
    with (_STATE / "users").open("w") as users:
        with _alone("start"):
            engine = _answering_engine() or _started_engine()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield engine
        finally:
            _tidy_if_unused(engine, users.fileno())


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """A lock between the test processes of one machine."""
    with (_STATE / what).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _answering_engine() -> Engine | None:
    # A client newer than its engine may miss the plugin that builds; the distribution's own fits.
    for program in (os.environ.get(ENGINE_VARIABLE), "/usr/bin/docker", shutil.which("docker"), shutil.which("podman")):
        if program and Path(program).exists():
            engine = Engine(program, os.environ)
            try:
                engine.ask("info")
            except EngineError:
                continue
            return engine
    return None


def _started_engine() -> Engine:
    daemon = shutil.which("dockerd")
    if daemon is None or os.getuid() != 0:
        pytest.skip("no container engine answers, and none can be started: it takes dockerd (docker.io) and root")
    with (_STATE / "dockerd.log").open("wb") as log:
        process = subprocess.Popen([daemon], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    (_STATE / "dockerd.pid").write_text(str(process.pid))
    process.returncode = 0  # not ours alone: the last user of all test processes stops it
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        # Asked again, from the first on: some clients had asked just before it was up.
        if _answering_engine() and (engine := _answering_engine()):
            return engine
        time.sleep(0.5)
    tail = (_STATE / "dockerd.log").read_text(errors="replace")[-500:]
    pytest.skip(f"dockerd did not answer within {PATIENCE_S:.0f} s; its log ends: {tail}")


def _tidy_if_unused(engine: Engine, users: int) -> None:
    """In the last test process: remove the images that tests built, and stop the engine if tests started it."""
    made, pid = _STATE / "built", _STATE / "dockerd.pid"
    with _alone("start"):
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another test process goes on
        for reference in made.read_text().split() if made.exists() else ():
            with suppress(EngineError):
                engine.ask("rmi", reference)
        made.unlink(missing_ok=True)
        if pid.exists():
            _stop(int(pid.read_text()))
            pid.unlink()


def _stop(daemon: int) -> None:
    """Wait until the engine has ended: it still answers for some seconds, which would mislead the next user."""
    with suppress(ProcessLookupError):
        os.kill(daemon, signal.SIGTERM)
    wait_for(lambda: not is_running(daemon), every_s=0.1)


def base_image(engine: Engine) -> str:
    """A Debian image with Python, built from Debian packages if absent, without an image registry. It is kept."""
    with _alone("base"):
        if engine.inspect("image", BASE) is None:
            _bootstrap(engine)
    return BASE


def _bootstrap(engine: Engine) -> None:
    if shutil.which("debootstrap") is None or os.getuid() != 0:
        pytest.skip(f"there is no image {BASE}, and making it takes debootstrap and root")
    done = subprocess.run([str(_MAKE_BASE), BASE, engine.program], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the image {BASE} cannot be made: {done.stderr[-300:]}")


def build_options() -> BuildOptions:
    """Build options for this machine's network."""
    bundles = [Path(path) for path in _BUNDLES if path and Path(path).is_file()]
    return BuildOptions(ca_bundle=bundles[0] if bundles else None, network="host")


def small_content(base: str) -> ImageContent:
    whole = image_content({}, base=base)
    return replace(whole, requirements=tuple(line for line in whole.requirements if line.partition("==")[0] in _SMALL))


def built(content: ImageContent, engine: Engine) -> str:
    """Build the image if absent. Returns its reference."""
    with _alone("build"):
        if engine.inspect("image", content.reference) is None:
            with package_index():
                build_image(content, engine, build_options())
            with (_STATE / "built").open("a") as made:
                made.write(f"{content.reference}\n")
    return content.reference


@contextmanager
def container_run(storage: Storage, engine: Engine, image: str, code: str, **plan: Any) -> Iterator[RunRecord]:
    """A run with a unique id, whose trainer is ``code`` (see ``make_run``). Its container is removed afterwards."""
    run_id = f"digits-{secrets.token_hex(4)}"
    try:
        yield make_run(storage, code, run_id=run_id, backend="docker", image=image, **plan)
    finally:
        with suppress(EngineError):
            engine.ask("rm", "--force", container_name(run_id))
