"""AWS for tests of look-ups: moto in this process, with our own answers where moto has none or a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import pytest
from botocore.awsrequest import AWSResponse
from botocore.validate import ParamValidator
from moto import mock_aws

from mtl_cloud.aws import AwsClients

__all__ = ["Answers", "moto_clients"]

Reply: TypeAlias = dict[str, Any]


@contextmanager
def moto_clients(region: str = "us-east-1") -> Iterator[AwsClients]:
    """Clients whose requests moto answers. Create them inside the test, while its credentials are set."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield AwsClients(region)


class Answers:
    """Answers that replace moto's: the latest answer for an operation holds until ``forget``."""

    def __init__(self, clients: AwsClients, services: Iterable[str]) -> None:
        self.asked: list[str] = []
        """The requested operations, in order."""
        self._replies: dict[tuple[str, str], Callable[[Any], tuple[AWSResponse, Reply]]] = {}
        for service in services:
            for retries in ("standard", "none"):
                events = clients(service, retries=retries).meta.events
                events.register("before-call", partial(self._respond, service))

    def give(self, service: str, operation: str, reply: Reply) -> None:
        """Set the answer to an operation. It must match botocore's model of the operation."""

        def respond(model: Any) -> tuple[AWSResponse, Reply]:
            report = ParamValidator().validate(reply, model.output_shape)
            assert not report.has_errors(), report.generate_report()
            return AWSResponse("", 200, {}, None), {**reply, "ResponseMetadata": {"HTTPStatusCode": 200}}

        self._replies[service, operation] = respond

    def refuse(self, service: str, operation: str, code: str, message: str = "no", status: int = 400) -> None:
        """Set an error as the answer to an operation."""
        error = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
        self._replies[service, operation] = lambda _: (AWSResponse("", status, {}, None), error)

    def forget(self) -> None:
        self._replies.clear()
        self.asked.clear()

    def _respond(self, service: str, model: Any, **_: Any) -> tuple[AWSResponse, Reply] | None:
        self.asked.append(model.name)
        reply = self._replies.get((service, model.name))
        return reply(model) if reply else None
