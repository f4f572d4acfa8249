"""The JSON schema of job files, for editors and for tests. Derived from the models: there is no second declaration."""

from __future__ import annotations

from typing import Any

from mtl_cloud.jobspec.job import JobSpec
from mtl_cloud.jobspec.load import preset_names

__all__ = ["job_schema"]


def job_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a job file, with `extends`.

    Required fields are those of the file, so none that a preset could bring: presets bring only optional ones.
    """
    preset = {"type": "string", "enum": list(preset_names())}
    extends = {
        "title": "Extends",
        "description": "A preset, or several in order: defaults for fields that the job does not set.",
        "anyOf": [preset, {"type": "array", "items": preset}],
    }
    schema = JobSpec.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "mtl-cloud job",
        "properties": {"extends": extends, **schema["properties"]},
    }
