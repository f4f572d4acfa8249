"""A handmade run record: three tasks, four rounds, an interruption, samples with boxes and masks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from mtl_cloud.report.build import AttemptView, Report
from mtl_cloud.runs.record import RunRecord
from mtl_cloud.runs.schema import AttemptRecord, ExitRecord, PlanRecord, ResultRecord, RoundRecord, RoundSamples
from mtl_cloud.storage import Storage

DIGITS = [str(digit) for digit in range(10)]
MASKS = ["background", *DIGITS]
SPEC = "name: quickstart\ndataset:\n  name: embedded  # <digits> & scenes\n"

PLAN = PlanRecord(
    run_id="quickstart-20261123-1455-k3f9",
    name="quickstart",
    created_at="2026-11-23T14:55:00+00:00",
    backend="local",
    storage="s3://example-bucket/runs",
    command=["python", "-m", "mtl_cloud.train"],
    env={},
    processes=8,
    rounds=5,
    deadline_s=7200.0,
    usd_per_hour=21.96,
    budget_usd=40.0,
    tags={"team": "vision"},
    facts={"prices": {"source": "shipped table", "date": "2026-08-01"}},
    warnings=["gpu_count: 1 of the 8 GPUs of p4d.24xlarge is used; all 8 are paid"],
)


def round_record(number: int, **changes: Any) -> RoundRecord:
    """Round ``number`` of a run that learns: losses fall and metrics rise."""
    gain = 1 - 0.5**number
    values: dict[str, Any] = {
        "round": number,
        "attempt": 1 if number < 3 else 2,
        "step": 137 * number,
        "epoch": 20 * number,
        "ended_at": f"2026-11-23T15:{10 * number:02d}:00+00:00",
        "seconds": 300.25 + number,
        "validation_s": 12.5 + number,
        "images": 16384,
        "images_per_s": 812.5 + number,
        "data_wait": 0.031,
        "train_losses": {
            "classification": 2.3 * (1 - gain) + 0.01,
            "detection": 11.7 * (1 - gain) + 0.02,
            "segmentation": 1.9 * (1 - gain) + 0.03,
        },
        "val_losses": {
            "classification": 2.3 * (1 - 0.9 * gain),
            "detection": 11.9 * (1 - 0.8 * gain),
            "segmentation": 1.95 * (1 - 0.9 * gain),
        },
        "metrics": {
            "classification": {
                "top1": 0.971 * gain,
                "top5": 0.2 + 0.79 * gain,
                "recall_macro": 0.962 * gain,
                "top1_low": 0.94 * gain,
                "top1_high": 0.985 * gain,
                "n": 1000.0,
            },
            "detection": {"map50_voc": 0.812 * gain, "map50_voc07": 0.799 * gain, "map": 0.513 * gain},
            "segmentation": {"miou": 0.764 * gain, "pixel_accuracy": 0.5 + 0.47 * gain},
        },
        "per_class": {
            "classification": {"recall": {name: 0.9 * gain + 0.01 * k for k, name in enumerate(DIGITS)}},
            "detection": {
                "ap50_voc": {name: 0.8 * gain + 0.012 * k for k, name in enumerate(DIGITS)},
                "recall50": {name: None if name == "7" else 0.7 * gain for name in DIGITS},
            },
            "segmentation": {"iou": {name: 0.7 * gain + 0.013 * k for k, name in enumerate(MASKS)}},
        },
        "confusion": [[90 + i if i == j else (i * 3 + j) % 5 for j in range(10)] for i in range(10)],
        "classes": {"classification": DIGITS, "detection": DIGITS, "segmentation": MASKS},
        "learning_rate": 0.01 * (1 - gain),
        "weights": {"classification": 1.0 + gain, "detection": 1.0 - 0.4 * gain, "segmentation": 1.0},
        "sharing": {
            str(stage): {
                "kind": "gate",
                "coefficients": {
                    "detection": {"classification": 0.07 * stage * gain, "segmentation": 0.03 * stage * gain},
                    "segmentation": {"classification": 0.05 * stage * gain, "detection": 0.16 * stage * gain},
                },
            }
            for stage in (3, 4, 5)
        },
        "usd": 1.9,
    }
    return RoundRecord(**(values | changes))


def _png(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def scene(seed: int) -> dict[str, Any]:
    """A noisy grey image with two bright squares, their boxes and their mask; the prediction is a little off."""
    random = np.random.default_rng(seed)
    image = random.integers(30, 90, (96, 96, 3), dtype=np.uint8)
    mask = np.zeros((96, 96), dtype=np.uint8)
    truth, guess = [], []
    for top, left, digit in ((10, 8, seed % 10), (50, 46, (seed + 3) % 10)):
        image[top : top + 34, left : left + 34] += 120
        mask[top : top + 34, left : left + 34] = digit + 1
        truth.append([DIGITS[digit], 1.0, left, top, left + 34, top + 34])
        guess.append([DIGITS[digit], 0.87, left + 2, top - 1, left + 37, top + 33])
    mask[:3] = 255
    return {
        "key": f"scene-{seed:04d}",
        "image": _png(image),
        "truth": {"classes": [[DIGITS[seed % 10], 1.0]], "boxes": truth, "mask": _png(mask)},
        "prediction": {
            "classes": [[DIGITS[seed % 10], 0.91], [DIGITS[(seed + 1) % 10], 0.05]],
            "boxes": guess,
            "mask": _png(np.roll(mask, 2, axis=1)),
        },
    }


def example_report(rounds: int = 4) -> Report:
    """The whole run."""
    first = AttemptRecord(
        number=1, started_at="2026-11-23T15:00:00+00:00", host="ip-10-0-1-7", pid=1, backend="local", device="8 x A100"
    )
    second = AttemptRecord(
        number=2, started_at="2026-11-23T15:31:00+00:00", host="ip-10-0-2-9", pid=1, backend="local", device="8 x A100"
    )
    cut = ExitRecord(
        ended_at="2026-11-23T15:24:00+00:00",
        outcome="interrupted",
        exit_code=None,
        message="spot notice",
        seconds=1440.0,
    )
    end = ExitRecord(ended_at="2026-11-23T16:00:00+00:00", outcome="done", exit_code=0, message="", seconds=1740.5)
    return Report(
        plan=PLAN,
        spec_yaml=SPEC,
        rounds=tuple(round_record(number) for number in range(1, rounds + 1)),
        attempts=(AttemptView(first, cut), AttemptView(second, end)),
        result=ResultRecord(
            ended_at="2026-11-23T16:00:00+00:00",
            outcome="done",
            message="all rounds are done",
            attempts=2,
            rounds=rounds,
            seconds=3180.5,
            usd=19.4,
        ),
        samples=RoundSamples(
            round=rounds, classes={"detection": DIGITS, "segmentation": MASKS}, samples=[scene(n) for n in range(4)]
        ),
    )


def write_run(storage: Storage, report: Report, *, spec_json: bytes = b"{}") -> RunRecord:
    """Write the run of ``report`` into a storage, in the order of a real run."""
    run = RunRecord(storage, report.plan.run_id)
    run.create(report.plan, spec_yaml=report.spec_yaml.encode(), spec_json=spec_json)
    for view in report.attempts:
        number = view.attempt.number
        run.claim(view.attempt)
        run.append_log(number, 1, f"attempt {number} begins\n".encode())
        run.append_log(number, 2, f"attempt {number} éng\n".encode())
        for record in report.rounds:
            if record.attempt == number:
                run.write_round(record)
        if view.exit:
            run.write_exit(number, view.exit)
    if report.samples:
        run.write_samples(report.samples, attempt=report.attempts[-1].attempt.number)
    if report.result:
        run.write_result(report.result, attempt=report.attempts[-1].attempt.number)
    return run
