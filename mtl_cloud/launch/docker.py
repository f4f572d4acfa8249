"""The docker backend: the image, detached, in this machine's container engine.

The container sees only the folders that the job names, at the same paths. Its root is read-only, it runs as the user
who submits, and it has no capabilities.
"""

from __future__ import annotations

import csv
import io
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from urllib.parse import urlsplit

from mtl_cloud.clock import Clock
from mtl_cloud.container.engine import Engine
from mtl_cloud.errors import EngineError, ImageError, LaunchError
from mtl_cloud.launch.base import BackendState, RunHandle, Submission, record_of
from mtl_cloud.launch.leftover import Leftover
from mtl_cloud.names import RUN_LABEL, STORAGE_LABEL, SupervisorFlag, container_name
from mtl_cloud.runs.attempts import read_attempt
from mtl_cloud.runs.dataclass_json import FieldPath, from_json, to_json
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import PlanRecord
from mtl_cloud.runs.supervisor_options import SupervisorOptions

__all__ = ["DockerLauncher", "find_leftovers", "remove_leftovers"]

_START_S = 120.0
_LOOK_S = 0.2
_STOP_MARGIN_S = 15.0
"""Time for the last log lines and the exit record, after the trainer's grace period."""
_SHARED_MEMORY = "16g"
"""A limit, not a reservation. Loader processes pass whole batches through it."""
_AWS_FILES = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_OVER = {"exited", "dead", "removing", "stopped"}


@dataclass(frozen=True)
class ContainerRequest:
    """The request of a submission to the container engine."""

    image: str | None
    run: tuple[str, ...]
    """Options of the engine's ``run``."""
    arguments: tuple[str, ...]
    """Arguments of the supervisor, without the attempt's number."""


class DockerLauncher:
    """One container for each run, named after it, so that the engine refuses a second one."""

    backend = "docker"

    def __init__(
        self,
        *,
        environ: Mapping[str, str] = os.environ,
        engine: Engine | None = None,
        hostname: str | None = None,
        user: str | None = None,
        memory: str | None = None,
        options: Sequence[str] = (),
        flags: Sequence[str] = (),
        settings: SupervisorOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        """``memory`` limits the container, as ``8g``; ``user`` is ``uid:gid``, by default this process's.

        ``options`` are further ones of the engine's ``run``, ``flags`` of the supervisor.
        """
        self._environ = environ
        self._given_engine = engine
        self._hostname = hostname or socket.gethostname()
        self._user = user or f"{os.getuid()}:{os.getgid()}"
        self._memory = memory
        self._options = tuple(options)
        self._flags = tuple(flags)
        self._settings = settings or SupervisorOptions()
        self._clock = clock or Clock()

    # --- the request ---

    def prepare(self, plan: PlanRecord) -> Submission:
        options = ("--name", container_name(plan.run_id), *self.surroundings(plan))
        run = (SupervisorFlag.STORAGE, plan.storage, SupervisorFlag.RUN_ID, plan.run_id)
        supervisor = (*run, *self._settings.to_flags(), *self._flags)
        return Submission(RunHandle.of(plan), to_json(ContainerRequest(plan.image, options, supervisor)))

    def surroundings(self, plan: PlanRecord) -> Iterator[str]:
        """Options of the engine's ``run`` that give the container access to GPUs, folders and network."""
        from mtl_cloud.planning.compute import compute_of  # pydantic, which commands on a run that exists do without

        yield from ("--label", f"{RUN_LABEL}={plan.run_id}", "--label", f"{STORAGE_LABEL}={plan.storage}")
        yield from ("--hostname", self._hostname, "--user", self._user)
        yield from ("--read-only", "--tmpfs", "/tmp:exec,mode=1777", "--shm-size", _SHARED_MEMORY)  # noqa: S108
        yield from ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        yield from ("--stop-timeout", f"{self._settings.grace_s + _STOP_MARGIN_S:.0f}")
        gpus = compute_of(plan).gpu_count
        yield from ("--gpus", str(gpus)) if gpus else ()
        yield from ("--memory", self._memory, "--memory-swap", self._memory) if self._memory else ()
        yield from self._mounts(plan)
        if any("://" in place for place in (plan.storage, *plan.inputs)):
            yield from self._cloud()
        yield from self._options

    def _mounts(self, plan: PlanRecord) -> Iterator[str]:
        for place in plan.inputs:
            if Path(place).is_absolute():
                yield from _mount(place, place, read_only=True)
        if Path(plan.storage).is_absolute():
            yield from _mount(plan.storage, plan.storage, read_only=False)

    def _cloud(self) -> Iterator[str]:
        """The client's AWS configuration. Variables are passed by name, so that the request holds no secret."""
        names = sorted(name for name in self._environ if name.startswith("AWS_"))
        yield from (part for name in names for part in ("--env", name))
        for path in (self._environ[name] for name in _AWS_FILES if Path(self._environ.get(name, "")).is_file()):
            yield from _mount(path, path, read_only=True)
        profiles = Path(self._environ.get("HOME", "~")).expanduser() / ".aws"
        if profiles.is_dir():
            yield from _mount(str(profiles), "/tmp/.aws", read_only=True)  # noqa: S108  # the image's home
        on_loopback = any(urlsplit(self._environ[name]).hostname in _LOOPBACK for name in names if "ENDPOINT" in name)
        if on_loopback and "--network" not in self._options:
            yield from ("--network", "host")  # the server runs on this machine

    # --- the container ---

    def submit(self, submission: Submission) -> RunHandle:
        run = record_of(submission.handle)
        if run.result() is None and not self._lives(run):
            self._start(run, submission, attempt=len(run.attempts()) + 1)
        return submission.handle

    def describe(self, handle: RunHandle) -> BackendState:
        run = record_of(handle)
        if self._status(run.run_id) == "created":
            return BackendState.PENDING
        return BackendState.RUNNING if self._lives(run) else BackendState.ENDED

    def stop(self, handle: RunHandle) -> None:
        run = record_of(handle)
        if self._status(run.run_id) not in _OVER | {None}:
            self._engine.ask("stop", container_name(run.run_id), timeout_s=None)
        elif self._lives(run):
            attempt = run.attempts()[-1]
            raise LaunchError(
                f"{run.run_id}: runs on {attempt.host}, and this is {self._hostname}",
                hint=f"mtl-cloud cancel {run.run_id} stops it through the run record",
            )

    def _lives(self, run: RunRecord) -> bool:
        """Whether an attempt runs in this engine, or on another machine with the same storage."""
        if self._status(run.run_id) not in _OVER | {None}:
            return True
        attempts = run.attempts()
        elsewhere = bool(attempts) and attempts[-1].host != self._hostname
        return elsewhere and read_attempt(run, attempts[-1]).is_alive(self._clock.now())

    def _status(self, run_id: str) -> str | None:
        """The engine's state of the run's container; None without a container."""
        found = self._engine.inspect("container", container_name(run_id))
        return None if found is None else str(found["State"]["Status"])

    def _start(self, run: RunRecord, submission: Submission, attempt: int) -> None:
        request = from_json(ContainerRequest, submission.request, FieldPath(run.run_id, "submission"))
        image = self._image(run.run_id, request.image)
        try:
            self._remove_dead(run.run_id)
            arguments = (*request.arguments, SupervisorFlag.ATTEMPT, str(attempt))
            self._engine.ask("run", "--detach", *request.run, image, *arguments)
        except EngineError:
            if self._status(run.run_id) in _OVER | {None, "created"}:
                raise
            return  # another client has started it meanwhile
        self._await_claim(run, attempt)

    def _image(self, run_id: str, image: str | None) -> str:
        if image is None:
            raise ImageError(f"{run_id}: the plan names no image", hint="set compute.image")
        if self._engine.inspect("image", image) is None:
            raise ImageError(
                f"the image {image} is not on this machine",
                hint=f"mtl-cloud image build makes this version's image; {self._engine.program} pull fetches another",
            )
        return image

    def _remove_dead(self, run_id: str) -> None:
        found = self._engine.inspect("container", container_name(run_id))
        if found is not None and found["State"]["Status"] in _OVER:
            self._engine.ask("rm", str(found["Id"]))  # by id, since the name may have been reused

    def _await_claim(self, run: RunRecord, attempt: int) -> None:
        end = self._clock.monotonic() + _START_S
        while (run.owner() or 0) < attempt:
            is_over = self._status(run.run_id) in _OVER | {None} or self._clock.monotonic() > end
            if is_over and (run.owner() or 0) < attempt:
                raise self._no_start(run.run_id)
            self._clock.sleep(_LOOK_S)

    def _no_start(self, run_id: str) -> LaunchError:
        logs = f"{self._engine.program} logs {container_name(run_id)}"
        words = self._engine.last_words(container_name(run_id)) or "it said nothing"
        return LaunchError(f"{run_id}: the supervisor did not start: {words}", hint=f"its log: {logs}")

    @property
    def _engine(self) -> Engine:
        return self._given_engine or Engine.find(self._environ)


def find_leftovers(engine: Engine, *, is_over: Callable[[str, str], bool]) -> list[Leftover]:
    """Ended containers of runs that are over. The next attempt of other runs replaces their container.

    ``is_over`` maps a run id and the URL of its storage to whether the run has a result. Raises ``EngineError``.
    """
    ids = engine.ask("ps", "--all", "--quiet", "--filter", f"label={STORAGE_LABEL}").split()
    found = [container for one in ids if (container := engine.inspect("container", one))]
    ended = [(one["Config"]["Labels"], one["Name"]) for one in found if one["State"]["Status"] in _OVER]
    return [
        Leftover(labels[RUN_LABEL], "", "the run is over", (f"container {name.lstrip('/')}",))
        for labels, name in sorted(ended, key=itemgetter(1))
        if labels[STORAGE_LABEL] and is_over(labels[RUN_LABEL], labels[STORAGE_LABEL])
    ]


def remove_leftovers(leftovers: Iterable[Leftover], engine: Engine) -> Iterator[Leftover]:
    """Remove the containers; yields each after its removal. Raises ``EngineError``."""
    for leftover in leftovers:
        for name in leftover.names:
            container = name.partition(" ")[2]
            if engine.inspect("container", container):
                engine.ask("rm", container)
        yield leftover


def _mount(source: str, target: str, *, read_only: bool) -> tuple[str, str]:
    """A bind mount, as the comma-separated values that engines read."""
    fields = ["type=bind", f"source={source}", f"target={target}", *(["readonly"] if read_only else [])]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return "--mount", line.getvalue()
