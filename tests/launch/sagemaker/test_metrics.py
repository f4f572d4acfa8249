"""SageMaker's metric definitions find their numbers in what the trainer truly prints."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from trainer_harness import ALONE, open_attempt, small_job

from mtl_cloud.launch.sagemaker.metrics import metric_definitions
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.storage import MemoryStorage

LISTED: Any = metric_definitions()
DEFINITIONS: dict[str, str] = {d["Name"]: d["Regex"] for d in LISTED}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunRecord]:
    """The log of a job of one round with all three tasks, and its record."""
    storage, lines = MemoryStorage("metrics"), []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"15:00:00 {record.getMessage()}")

    log, handler = logging.getLogger("mtl_cloud.train"), Lines()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        folder = tmp_path_factory.mktemp("metrics")
        job = small_job(rounds=1, epochs_per_round=1)
        open_attempt(job, folder, storage=storage, attempt=1, data=None, group=ALONE).fit()
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    return "\n".join(lines), RunRecord(storage, "test")


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_definition_finds_the_number_that_the_record_holds(name: str, trained: tuple[str, RunRecord]) -> None:
    text, run = trained
    (record,) = run.rounds()
    task, _, metric = name.partition(":")
    found = re.findall(DEFINITIONS[name], text)
    assert len(found) == 1
    if metric == "loss":
        assert float(found[0]) == pytest.approx(record.train_losses[task], rel=1e-3)
    elif metric:
        assert float(found[0]) == pytest.approx(record.metrics[task][metric], rel=1e-3, abs=1e-9)
    else:
        assert float(found[0]) > 0


@pytest.mark.parametrize(("number", "value"), [("1e-05", 1e-5), ("0.9712", 0.9712), ("-3.2e+04", -3.2e4), ("0", 0.0)])
def test_a_number_is_read_in_every_form_that_it_is_printed_in(number: str, value: float) -> None:
    line = f"15:00:00 metrics round=12 task=detection map50_voc=0.5 map={number} recall50=0.25"
    found: Any = re.search(DEFINITIONS["detection:map"], line)
    assert float(found[1]) == value


def test_a_task_s_metric_is_not_taken_from_another_task_s_line() -> None:
    line = "15:00:00 metrics round=1 task=segmentation miou=0.5 pixel_accuracy=0.75"
    assert [name for name, regex in DEFINITIONS.items() if re.search(regex, line)] == [
        "segmentation:miou",
        "segmentation:pixel_accuracy",
    ]
