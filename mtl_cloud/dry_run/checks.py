"""Evaluate a rehearsal as rows of a table. Pure: from its evidence and the run record alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mtl_cloud.dry_run.memory import MemoryNeed
from mtl_cloud.dry_run.rehearsal import Evidence
from mtl_cloud.errors import DatasetError, StorageError
from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import Outcome

__all__ = ["Row", "State", "check_evidence"]

State: TypeAlias = Literal["ok", "failed", "not checked", "not reached"]
_Finding: TypeAlias = tuple[State, str]
_KILLED = 128 + 9
"""Exit code of a container whose process was killed by SIGKILL, as the kernel does for lack of memory."""
_NOT_REACHED: _Finding = ("not reached", "")


@dataclass(frozen=True)
class Row:
    """One check. ``ok`` and ``not checked`` (impossible on this machine) count as good."""

    check: str
    state: State
    detail: str

    @property
    def is_good(self) -> bool:
        return self.state in {"ok", "not checked"}


def check_evidence(job: JobSpec, evidence: Evidence, need: MemoryNeed | None) -> list[Row]:
    """The checks of ``job`` (the whole one): the same rows in the same order for every rehearsal."""
    case = _Case(job, evidence, need, _culprit(evidence))
    return [Row(name, *_look(case, name, look)) for name, look in _CHECKS.items()]


@dataclass(frozen=True)
class _Case:
    job: JobSpec
    evidence: Evidence
    need: MemoryNeed | None
    culprit: tuple[str, str] | None
    """The check that a failure belongs to, and its message."""

    @property
    def run(self) -> RunRecord | None:
        return self.evidence.run


def _look(case: _Case, name: str, look: Callable[[_Case], _Finding]) -> _Finding:
    if case.culprit is not None and case.culprit[0] == name:
        return "failed", case.culprit[1]
    found = look(case)
    # A check that was not reached because of another failure has not failed; the request is independent.
    kept = found[0] == "failed" and case.culprit is not None and look is not _request
    return _NOT_REACHED if kept else found


def _culprit(evidence: Evidence) -> tuple[str, str] | None:
    if evidence.image is None:
        return None
    if evidence.probe_error is not None:
        return _row_of(evidence.probe_error[0]), evidence.probe_error[1]
    if evidence.start_error is not None:
        return "storage", evidence.start_error
    ended = _bad_end(evidence.run) or _bad_end(evidence.twin)
    if ended is None:
        return None
    code, words = ended
    if evidence.out_of_memory or "out of memory" in words:
        return "memory", words
    return _row_of(code), words


def _bad_end(run: RunRecord | None) -> tuple[int | None, str] | None:
    """Exit code and message of a run that ended for good without success."""
    result = run.result() if run else None
    if run is None or result is None or result.outcome == Outcome.DONE:
        return None
    last = run.exit(result.attempts)
    return (last.exit_code if last else None), result.message


def _row_of(exit_code: int | None) -> str:
    rows = {DatasetError.exit_code: "dataset", StorageError.exit_code: "storage", _KILLED: "memory"}
    return rows.get(exit_code or 0, "forward and backward")


# --- the checks ------------------------------------------------------------------------------------------------------


def _spec(case: _Case) -> _Finding:
    return "ok", f"{case.job.name}: {case.job.model.name} for {case.job.compute.backend}"


def _request(case: _Case) -> _Finding:
    found = case.evidence.request
    if found is None:
        return _NOT_REACHED
    states: dict[bool | None, State] = {True: "ok", False: "failed", None: "not checked"}
    return states[found.fits], found.words


def _image(case: _Case) -> _Finding:
    if case.evidence.image is None:
        return "failed", "not on this machine; build it with: mtl-cloud image build"
    return "ok", case.evidence.image


def _gpu(case: _Case) -> _Finding:
    wanted, probe = case.job.compute.gpu_count, case.evidence.probe
    if probe is None:
        return _NOT_REACHED
    if wanted == 0:
        return "ok", "the job trains on the CPU"
    if not probe["gpus"]:
        return "not checked", f"the job needs {wanted}, this machine has none: rehearsed on the CPU at reduced size"
    return "ok", f"{probe['gpus']} here, the job needs {wanted}"


def _dataset(case: _Case) -> _Finding:
    probe, run = case.evidence.probe, case.run
    if probe is None or run is None or not run.rounds():
        return _NOT_REACHED
    if bad := run.rounds()[-1].bad_samples:
        return "failed", f"{bad} damaged samples in the slice"
    tasks = probe["tasks"]
    labels = ", ".join(map(str, tasks)) if isinstance(tasks, list) else ""
    return "ok", f"{probe['train_images']} train and {probe['val_images']} val images, labelled for {labels}"


def _steps(case: _Case) -> _Finding:
    rounds = case.run.rounds() if case.run else []
    if not rounds:
        return _NOT_REACHED
    losses = {task: loss for task, loss in rounds[-1].train_losses.items() if loss is not None}
    words = ", ".join(f"{task} {loss:.3g}" for task, loss in losses.items())
    return ("ok", f"losses: {words}") if losses else ("failed", "no task had a loss")


def _memory(case: _Case) -> _Finding:
    found = case.need
    if found is None or case.run is None:
        return _NOT_REACHED
    needs = f"about {found.memory_gib:.1f} GiB a GPU at the job's batch and size"
    if found.gpu_memory_gib is None:
        return "not checked", f"{needs}; the job names no GPU machine"
    state: State = "ok" if found.memory_gib < found.gpu_memory_gib else "failed"
    return state, f"{needs}; it has {found.gpu_memory_gib:g} GiB"


def _checkpoint(case: _Case) -> _Finding:
    run, twin = case.run, case.evidence.twin
    start = run.start(2) if run else None
    if run is None or start is None or twin is None:
        return _NOT_REACHED
    if start.checkpoint_step is None:
        return "failed", "the attempt after the kill did not resume"
    ours, straight = (one.manifest(one.checkpoints()[-1]) for one in (run, twin))
    if (ours.step, ours.parts) != (straight.step, straight.parts):
        return "failed", "the state after kill and interruption differs from that of an undisturbed run"
    return "ok", f"killed, resumed at step {start.checkpoint_step}; the result equals an undisturbed run, bit for bit"


def _metrics(case: _Case) -> _Finding:
    result = case.run.result() if case.run else None
    if case.run is None or result is None:
        return _NOT_REACHED
    rounds = case.run.rounds()
    measured = [record.round for record in rounds if record.metrics]
    complete = measured == list(range(1, case.run.plan().rounds + 1))
    return ("ok" if complete else "failed"), f"rounds with metrics: {', '.join(map(str, measured)) or 'none'}"


def _logs(case: _Case) -> _Finding:
    run = case.run
    if run is None or not run.attempts():
        return _NOT_REACHED
    sizes = [len(run.read_log(attempt.number)) for attempt in run.attempts()]
    return ("ok" if all(sizes) else "failed"), f"{sum(sizes):,} bytes of {len(sizes)} attempts"


def _storage(case: _Case) -> _Finding:
    return ("ok", f"the record is in {case.run.storage.url}") if case.run and case.run.attempts() else _NOT_REACHED


def _stop(case: _Case) -> _Finding:
    run, seconds = case.run, case.evidence.stop_s
    end = run.exit(2) if run else None
    if seconds is None or end is None:
        return _NOT_REACHED
    clean = end.outcome == Outcome.INTERRUPTED
    return ("ok" if clean else "failed"), f"saved and exited {seconds:.1f} s after the notice" if clean else end.message


def _finished(case: _Case) -> _Finding:
    result = case.run.result() if case.run else None
    if result is None:
        return _NOT_REACHED
    return ("ok" if result.outcome == Outcome.DONE else "failed"), f"{result.message}, after {result.attempts} attempts"


_CHECKS: Final[dict[str, Callable[[_Case], _Finding]]] = {
    "spec": _spec,
    "request": _request,
    "image": _image,
    "GPU": _gpu,
    "dataset": _dataset,
    "storage": _storage,
    "forward and backward": _steps,
    "memory": _memory,
    "checkpoint": _checkpoint,
    "metrics": _metrics,
    "logs": _logs,
    "clean stop": _stop,
    "finished": _finished,
}
