"""The only maker of boto3 clients: it sets region, profile, timeouts, retries and user agent."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

from mtl_cloud import __version__
from mtl_cloud.aws.translate import translated
from mtl_cloud.errors import MissingExtraError

__all__ = ["AwsClients", "ClientMaker", "Retries"]

Retries: TypeAlias = Literal["standard", "adaptive", "none"]

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_ATTEMPTS = {"standard": 5, "adaptive": 8, "none": 1}
# The Price List is served from few regions, whatever region it is asked about.
_HOMES = {"pricing": "us-east-1"}


class ClientMaker(Protocol):
    """A source of clients: ``AwsClients``, or a test's function over fakes."""

    @property
    def region(self) -> str:
        """The region that clients talk to, e.g. ``eu-west-1``."""
        ...

    def __call__(self, service: str, *, retries: Retries = "standard") -> Any:
        """The client of a service under boto3's name for it (``ec2``, ``autoscaling``, ``service-quotas``)."""
        ...


class AwsClients:
    """Clients of one account in one region, each made once.

    ``profile`` is a name of the AWS configuration; None leaves the choice of credentials to boto3's usual chain. An
    endpoint other than AWS's comes from ``AWS_ENDPOINT_URL`` or ``AWS_ENDPOINT_URL_<SERVICE>``, as boto3 reads them.

    ``retries``: ``standard`` repeats what AWS says may be repeated, ``adaptive`` also slows down together with AWS (for
    loops that poll), ``none`` asks once: botocore would otherwise repeat "no capacity", which is an answer.

    Raises
    ------
    MissingExtraError
        boto3 is not installed.
    CloudError
        The profile does not exist, or its credentials cannot be read.
    """

    def __init__(self, region: str, *, profile: str | None = None) -> None:
        self._region = region
        self._clients: dict[tuple[str, Retries], Any] = {}
        with translated("boto3"):
            self._session = _session(region, profile)

    def __repr__(self) -> str:
        return f"AwsClients({self._region!r})"

    @property
    def region(self) -> str:
        return self._region

    def __call__(self, service: str, *, retries: Retries = "standard") -> Any:
        key = (service, retries)
        if key not in self._clients:
            with translated(service):
                self._clients[key] = self._make(service, retries)
        return self._clients[key]

    def _make(self, service: str, retries: Retries) -> Any:
        from botocore.config import Config

        mode = "standard" if retries == "none" else retries
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": mode, "total_max_attempts": _ATTEMPTS[retries]},
            user_agent_extra=f"mtl-cloud/{__version__}",
        )
        return self._session.client(service, region_name=_HOMES.get(service, self._region), config=config)


def _session(region: str, profile: str | None) -> Any:
    try:
        import boto3
    except ImportError as error:
        raise MissingExtraError("aws", "talking to AWS") from error
    return boto3.Session(region_name=region, profile_name=profile)
