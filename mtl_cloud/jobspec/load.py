"""Load a job file: merge its presets and the ``--set`` options, and report every mistake with its line and column.

Paths: a relative ``uri`` or pretrained path starts at the job file's folder, a relative ``storage`` at the working
directory, and ``~`` is the home folder; all become absolute. URLs are not changed. ``${VAR}`` is not expanded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mtl_cloud.errors import Problem, RecordError, SpecError
from mtl_cloud.jobspec.check import check, validate
from mtl_cloud.jobspec.finding import Finding, Loc, path_of
from mtl_cloud.jobspec.job import DatasetSpec, JobSpec
from mtl_cloud.jobspec.tree import Place, Tree, merge, override, read_yaml
from mtl_cloud.suggest import did_you_mean

if TYPE_CHECKING:
    from mtl_cloud.json_types import Json

__all__ = [
    "LoadedJob",
    "job_from_json",
    "job_to_json",
    "load_job",
    "parse_job",
    "preset_names",
    "preset_text",
    "relocate",
]

_PRESETS = Path(__file__).parent / "presets"
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LoadedJob:
    """A valid job, the bytes of its file, and warnings."""

    job: JobSpec
    source: bytes
    warnings: tuple[Problem, ...]


def load_job(path: Path | str, *, overrides: Sequence[str] = ()) -> LoadedJob:
    """Read a job file.

    ``overrides`` are ``field=value`` options (``training.batch_size=32``): the value is YAML and replaces the field's.

    Raises
    ------
    SpecError
        With all mistakes: of the file, the presets' names, the options, the schema and the constraints.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        hint = "`mtl-cloud init` writes a job file" if isinstance(error, FileNotFoundError) else None
        raise SpecError([Problem(str(path), 0, 0, "", f"cannot be read: {error.strerror}", hint)]) from error
    return parse_job(text, source=str(path), base=path.parent, overrides=overrides)


def parse_job(
    text: bytes, *, source: str, base: Path, overrides: Sequence[str] = (), cwd: Path | None = None
) -> LoadedJob:
    """``load_job`` from bytes: ``source`` names them in messages; relative paths start at ``base`` and ``cwd``."""
    tree = _inherit(override(read_yaml(text, source), overrides))
    job, findings = check(tree.data)
    problems = [*tree.problems, *(tree.problem(finding) for finding in findings if finding.fatal)]
    if problems:
        raise SpecError(problems)
    warnings = tuple(tree.problem(finding) for finding in findings)
    return LoadedJob(_absolute(job, base, cwd or Path.cwd()), text, warnings)


# --- presets ---------------------------------------------------------------------------------------------------------


def preset_names() -> tuple[str, ...]:
    """Names of the presets, for `extends`."""
    return tuple(sorted(path.stem for path in _PRESETS.glob("*.yaml")))


def preset_text(name: str) -> str:
    """The YAML text of a preset."""
    return (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def _inherit(tree: Tree) -> Tree:
    """The tree over its presets. Fields of a preset have, in messages, the line that names the preset."""
    own = {key: value for key, value in tree.data.items() if key != "extends"}
    below: dict[str, Json] = {}
    problems = []
    for loc, name in _extended(tree):
        if isinstance(name, str) and name in preset_names():
            below = merge(below, read_yaml((_PRESETS / f"{name}.yaml").read_bytes(), name).data)
        else:
            problems.append(tree.problem(_unknown_preset(loc, name)))
    inherited = dict.fromkeys(_locs(below), tree.place(("extends",)))
    return replace(
        tree, data=merge(below, own), values={**inherited, **tree.values}, problems=(*tree.problems, *problems)
    )


def _extended(tree: Tree) -> list[tuple[Loc, Json]]:
    value = tree.data.get("extends", [])
    if isinstance(value, list):
        return [(("extends", index), name) for index, name in enumerate(value)]
    return [(("extends",), value)]


def _unknown_preset(loc: Loc, name: Json) -> Finding:
    names = preset_names()
    nearest = did_you_mean(name, names) if isinstance(name, str) else None
    shown = f" {name!r}" if isinstance(name, str) else ""
    return Finding(loc, f"unknown preset{shown}: use one of {', '.join(names)}", nearest)


def _locs(data: Mapping[str, Json], below: Loc = ()) -> list[Loc]:
    own: list[Loc] = [(*below, key) for key in data]
    return own + [loc for key, value in data.items() if isinstance(value, dict) for loc in _locs(value, (*below, key))]


# --- paths -----------------------------------------------------------------------------------------------------------


def relocate(job: JobSpec, places: Mapping[str, str]) -> JobSpec:
    """The job with URLs and paths replaced by ``places``: URL or path -> path on this machine."""
    return _with_inputs(job, lambda place: None if place is None else places.get(place, place))


def _absolute(job: JobSpec, base: Path, cwd: Path) -> JobSpec:
    here = _with_inputs(job, lambda place: _resolved(place, base))
    return here.model_copy(update={"storage": _resolved(job.storage, cwd)})


def _with_inputs(job: JobSpec, place: Callable[[str | None], str | None]) -> JobSpec:
    datasets = tuple(dataset.model_copy(update={"uri": place(dataset.uri)}) for dataset in job.datasets)
    pretrained = {task: place(path) for task, path in job.model.pretrained}
    model = job.model.model_copy(update={"pretrained": job.model.pretrained.model_copy(update=pretrained)})
    dataset = datasets[0] if isinstance(job.dataset, DatasetSpec) else datasets
    return job.model_copy(update={"dataset": dataset, "model": model})


def _resolved(path: str | None, base: Path) -> str | None:
    if path is None or "://" in path:
        return path
    return str((base / Path(path).expanduser()).resolve())


# --- spec.json -------------------------------------------------------------------------------------------------------


def job_to_json(job: JobSpec) -> bytes:
    """The resolved job with all defaults, as stored in ``spec.json``."""
    document = {"schema_version": _SCHEMA_VERSION, **job.model_dump(mode="json")}
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def job_from_json(data: bytes, source: str) -> JobSpec:
    """The job that ``job_to_json`` wrote. Constraints are not checked again: the catalogue may have changed.

    Raises
    ------
    RecordError
        ``data`` is not JSON, or has another schema version.
    SpecError
        It is not a job: a field of another mtl-cloud version is never ignored silently.
    """
    try:
        document = dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise RecordError(f"{source}: not a JSON object ({error})") from error
    version = document.pop("schema_version", None)
    if version != _SCHEMA_VERSION:
        raise RecordError(
            f"{source}: schema version {version!r}, but this mtl-cloud reads version {_SCHEMA_VERSION}",
            hint="read it with the mtl-cloud that wrote it, or a newer one",
        )
    job = validate(document)
    if not isinstance(job, JobSpec):
        raise SpecError(Problem(*Place(source), path_of(found.loc), found.message, found.hint) for found in job)
    return job
