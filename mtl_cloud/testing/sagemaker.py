"""A fake of SageMaker training jobs that runs them, for tests and rehearsals. Public: your tests may use it, too.

It implements SageMaker's protocol on a local port, so the launcher, the SDK and botocore above it are real. A job's
containers are processes of this machine, started with the job's entry point, arguments and environment, in a folder
like ``/opt/ml``.

Unlike moto it has states over time, stopping with SIGTERM and a grace period, refused capacity, quotas, spot
interruptions with a restart, exit codes that become ``FailureReason``, and billed seconds. It has no images, networks,
permissions, copies from and to S3 (channels are empty folders), or CloudWatch.

::

    with SageMakerDouble(folder) as double:
        os.environ["AWS_ENDPOINT_URL_SAGEMAKER"] = double.url
        double.refuse("ml.p4d.24xlarge")            # no capacity, until double.allow(...)
        double.interrupt("mtl-cloud-digits-3fa1c9")  # a spot interruption, then a restart
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mtl_cloud.testing.sagemaker_job import DoubleJob, Request

__all__ = ["SageMakerDouble"]


class _Refusal(Exception):  # noqa: N818  # an answer, not a failure
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SageMakerDouble:
    """A context manager that serves at ``url``; leaving it ends every job.

    ``pending_s``: how long a job waits for capacity. ``grace_s``: time of a container after SIGTERM. ``environ``: the
    environment that containers inherit.
    """

    def __init__(
        self, folder: Path, *, environ: Mapping[str, str] = os.environ, pending_s: float = 60.0, grace_s: float = 120.0
    ) -> None:
        self._folder = folder
        self._environ = environ
        self.pending_s = pending_s
        self._grace_s = grace_s
        self._jobs: dict[str, DoubleJob] = {}
        self._refused: set[str] = set()
        self._quotas: dict[str, int] = {}
        self._lock = threading.Lock()
        self.requests: list[tuple[str, Request]] = []
        """Operation and parameters of every request, oldest first."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def refuse(self, instance_type: str) -> None:
        """Refuse this instance type from now on."""
        self._refused.add(instance_type)

    def allow(self, instance_type: str) -> None:
        self._refused.discard(instance_type)

    def set_quota(self, instance_type: str, instances: int) -> None:
        """Limit the instances of one training job. Without a quota there is no limit."""
        self._quotas[instance_type] = instances

    def interrupt(self, job: str) -> None:
        """Interrupt the job's machines: SIGTERM, the grace period, then a restart on other machines."""
        self._jobs[job].interrupt()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        for job in self._jobs.values():
            job.kill()

    # --- the operations ---

    def _answer(self, operation: str, request: Request) -> dict[str, Any]:
        with self._lock:
            self.requests.append((operation, request))
            match operation:
                case "CreateTrainingJob":
                    return self._create(request)
                case "DescribeTrainingJob":
                    return self._job(request).description()
                case "StopTrainingJob":
                    self._job(request).stop()
                    return {}
                case _:
                    raise _Refusal("UnknownOperationException", f"the fake does not implement {operation}")

    def _create(self, request: Request) -> dict[str, Any]:
        name, resources = request["TrainingJobName"], request["ResourceConfig"]
        if name in self._jobs:
            raise _Refusal("ResourceInUse", "Training job names must be unique within an AWS account and region")
        if request["EnableManagedSpotTraining"] and {"InstancePreferences", "KeepAlivePeriodInSeconds"} & set(
            resources
        ):
            raise _Refusal("ValidationException", "Managed spot training takes neither preferences nor a warm pool")
        quota = self._quotas.get(resources.get("InstanceType", ""))
        if quota is not None and resources["InstanceCount"] > quota:
            raise _Refusal(
                "ResourceLimitExceeded",
                f"The account-level service limit '{resources['InstanceType']} for training job usage' is {quota} "
                f"Instances, with current utilization of 0 Instances and a request delta of "
                f"{resources['InstanceCount']} Instances.",
            )
        job = self._jobs[name] = DoubleJob(
            request,
            self._folder / name,
            environ=self._environ,
            has_capacity=lambda instance_type: instance_type not in self._refused,
            pending_s=self.pending_s,
            grace_s=self._grace_s,
        )
        job.start()
        return {"TrainingJobArn": job.description()["TrainingJobArn"]}

    def _job(self, request: Request) -> DoubleJob:
        try:
            return self._jobs[request["TrainingJobName"]]
        except KeyError:
            raise _Refusal("ValidationException", "Requested resource not found.") from None

    # --- the wire: AWS's JSON protocol 1.1 ---

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name in the base class
                operation = self.headers["X-Amz-Target"].partition(".")[2]
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    self._send(200, answer(operation, json.loads(body)))
                except _Refusal as refusal:
                    self._send(400, {"__type": refusal.code, "message": str(refusal)})

            def _send(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # do not log
                pass

        return Handler
