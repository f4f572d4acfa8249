"""One training job of the fake: its states in a thread, its containers as processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from mtl_cloud.launch.sagemaker.opt_ml import write_opt_ml
from mtl_cloud.names import SAGEMAKER_SCRATCH

__all__ = ["DoubleJob"]

Request: TypeAlias = dict[str, Any]

_SPOT_PRICE = 0.3
"""Spot's share of the on-demand price, by which the fake bills."""
_TICK_S = 0.02
_NO_CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. "
    "Please retry using a different ML instance type or after some time."
)


class DoubleJob:
    """A job starts with ``start`` and ends by itself, by ``stop`` or by ``kill``."""

    def __init__(
        self,
        request: Request,
        folder: Path,
        *,
        environ: Mapping[str, str],
        has_capacity: Callable[[str], bool],
        pending_s: float,
        grace_s: float,
    ) -> None:
        self.request = request
        self._folder = folder
        self._environ = environ
        self._has_capacity = has_capacity
        self._pending_s = pending_s
        self._grace_s = grace_s
        self._created_at = time.time()
        self._state = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting"}
        self._transitions: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._containers: list[subprocess.Popen[bytes]] = []
        self._stopping, self._interrupting = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def start(self) -> None:
        self._enter("Starting", "Starting the training job")
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def interrupt(self) -> None:
        """Interrupt the job's machines."""
        self._interrupting.set()

    def kill(self) -> None:
        """End it without a grace period, and wait for its end."""
        self._stopping.set()
        for container in self._containers:
            container.kill()
        self._thread.join()

    def description(self) -> dict[str, Any]:
        """The body of DescribeTrainingJob's answer."""
        seconds = max(1, round(self._seconds))
        share = _SPOT_PRICE if self.request.get("EnableManagedSpotTraining") else 1.0
        bill = {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": max(1, round(seconds * share))}
        answer = {key: value for key, value in self.request.items() if key != "Tags"}
        return {
            **answer,
            **self._state,
            "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{answer['TrainingJobName']}",
            "ModelArtifacts": {"S3ModelArtifacts": answer["OutputDataConfig"]["S3OutputPath"]},
            "CreationTime": self._created_at,
            "SecondaryStatusTransitions": list(self._transitions),
            **(bill if self._state["TrainingJobStatus"] != "InProgress" and self._seconds else {}),
        }

    # --- states over time ---

    def _live(self) -> None:
        while self._find_capacity():
            if self._train():
                return
            self._interrupting.clear()
            self._enter("Interrupted", "Training job interrupted: spot capacity was taken back")

    def _find_capacity(self) -> bool:
        """True with a machine; False when the job has ended for lack of capacity."""
        self._enter("Pending", "Waiting for capacity")
        end = time.monotonic() + self._pending_s
        while not self._stopping.is_set():
            resources = self.request["ResourceConfig"]
            preferences = [preference["InstanceType"] for preference in resources.get("InstancePreferences", [])]
            found = next(filter(self._has_capacity, preferences or [resources["InstanceType"]]), None)
            if found is not None:
                chosen = {"SelectedInstanceType": found} if preferences else {}
                self.request = {**self.request, "ResourceConfig": {**resources, **chosen}}
                return True
            if time.monotonic() > end:
                self._end_without_capacity()
                return False
            time.sleep(_TICK_S)
        self._end("Stopped", "Stopped")
        return False

    def _end_without_capacity(self) -> None:
        if self.request.get("EnableManagedSpotTraining"):
            self._end("Stopped", "MaxWaitTimeExceeded")
        else:
            self._end("Failed", "Failed", _NO_CAPACITY)

    def _train(self) -> bool:
        """True when the job is over, False when it was interrupted."""
        self._enter("Downloading", "Downloading input data")
        self._start_containers()
        self._enter("Training", "Training image download completed. Training in progress.")
        started = time.monotonic()
        codes = self._wait()
        self._seconds += time.monotonic() - started
        if self._stopping.is_set():
            self._end("Stopped", "Stopped")
        elif self._interrupting.is_set():
            return False
        elif any(codes):
            self._end("Failed", "Failed", self._failure(next(filter(None, codes))))
        else:
            self._enter("Uploading", "Uploading generated training model")
            self._end("Completed", "Completed")
        return True

    def _wait(self) -> list[int]:
        """Exit codes of all containers, which are terminated when the job stops or one of them fails."""
        asked_at = None
        while any(container.poll() is None for container in self._containers):
            failed = any(container.poll() for container in self._containers)
            if asked_at is None and (failed or self._stopping.is_set() or self._interrupting.is_set()):
                asked_at = time.monotonic()
                self._state["TrainingJobStatus"] = "Stopping" if self._stopping.is_set() else "InProgress"
                self._signal(subprocess.Popen.terminate)
            if asked_at is not None and time.monotonic() - asked_at > self._grace_s:
                self._signal(subprocess.Popen.kill)
            time.sleep(_TICK_S)
        return [container.wait() for container in self._containers]

    def _signal(self, send: Callable[[subprocess.Popen[bytes]], None]) -> None:
        for container in self._containers:
            with suppress(ProcessLookupError):
                send(container)

    def _failure(self, code: int) -> str:
        texts = [path.read_text(errors="replace") for path in sorted(self._folder.glob("*/output/failure"))]
        return f"AlgorithmError: {texts[0] if texts else ''}, exit code: {code if code > 0 else 128 - code}"

    # --- containers ---

    def _start_containers(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # a new machine starts empty
        count = self.request["ResourceConfig"]["InstanceCount"]
        hosts = [f"127.0.0.{number}" for number in range(1, count + 1)]  # all of 127.0.0.0/8 is this machine
        self._containers = [self._start_container(host, hosts) for host in hosts]

    def _start_container(self, host: str, hosts: list[str]) -> subprocess.Popen[bytes]:
        request, specification = self.request, self.request["AlgorithmSpecification"]
        channels = {channel["ChannelName"]: channel["InputMode"] for channel in request.get("InputDataConfig", [])}
        root = write_opt_ml(
            self._folder / host,
            host=host,
            hosts=hosts,
            channels=channels,
            hyperparameters=request.get("HyperParameters"),
            interface="lo",
        )
        # A container has folders of its own; "/opt/ml" is SageMaker's name.
        places = {"python": sys.executable, "/opt/ml": str(root), SAGEMAKER_SCRATCH: str(root / "tmp")}
        argv = [*specification["ContainerEntrypoint"], *specification["ContainerArguments"]]
        environ = {**self._environ, **request["Environment"], "TRAINING_JOB_NAME": request["TrainingJobName"]}
        with (root / "output.log").open("wb") as output:
            return subprocess.Popen(
                [places.get(part, part) for part in argv],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # --- states ---

    def _enter(self, secondary: str, message: str) -> None:
        self._transitions.append({"Status": secondary, "StartTime": time.time(), "StatusMessage": message})
        self._state = {**self._state, "SecondaryStatus": secondary}

    def _end(self, status: str, secondary: str, reason: str = "") -> None:
        self._enter(secondary, reason)
        failure = {"FailureReason": reason[:1024]} if reason else {}
        self._state = {"TrainingJobStatus": status, "SecondaryStatus": secondary, **failure}
