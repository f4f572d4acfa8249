"""Push the image to the ECR repository of an account, or to any registry that the engine is logged in to."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mtl_cloud.aws import ClientMaker, translated
from mtl_cloud.container.engine import Engine
from mtl_cloud.container.image import ImageContent
from mtl_cloud.errors import CloudError, EngineError, ImageError
from mtl_cloud.names import REPOSITORY

__all__ = ["Pushed", "push_image", "push_to_ecr"]


@dataclass(frozen=True)
class Pushed:
    """A pushed image."""

    reference: str
    was_there: bool
    """Whether it was in the registry before. A tag has one content, so nothing was pushed then."""


def push_to_ecr(content: ImageContent, engine: Engine, clients: ClientMaker) -> Pushed:
    """Push to the repository ``mtl-cloud`` of the clients' account and region, unless the image exists there.

    Raises
    ------
    ImageError
        The repository does not exist, the image is not built, or the push fails.
    CloudError
        AWS refused a request.
    """
    repository = _repository(clients)
    reference = f"{repository}:{content.tag}"
    if _holds(clients, content.tag):
        return Pushed(reference, was_there=True)
    _require_built(content, engine)
    with _login(engine, clients, registry=repository.partition("/")[0]):
        return push_image(content, engine, repository)


def push_image(content: ImageContent, engine: Engine, repository: str) -> Pushed:
    """Push to ``host/name``, with the engine's progress on standard error. Existing layers are not sent again."""
    _require_built(content, engine)
    reference = f"{repository}:{content.tag}"
    try:
        engine.ask("tag", content.reference, reference)
        engine.show("push", reference)
    except EngineError as error:
        raise ImageError(f"{reference}: {error}", hint=error.hint) from error
    return Pushed(reference, was_there=False)


def _repository(clients: ClientMaker) -> str:
    """The repository's address, ``<account>.dkr.ecr.<region>.amazonaws.com/mtl-cloud``."""
    try:
        with translated("ecr", where=REPOSITORY):
            found = clients("ecr").describe_repositories(repositoryNames=[REPOSITORY])
    except CloudError as error:
        if error.code != "RepositoryNotFoundException":
            raise
        raise ImageError(
            f"there is no ECR repository {REPOSITORY!r} in {clients.region}", hint="deploy the stack of infra/ there"
        ) from error
    return str(found["repositories"][0]["repositoryUri"])


def _holds(clients: ClientMaker, tag: str) -> bool:
    try:
        with translated("ecr", where=f"{REPOSITORY}:{tag}"):
            clients("ecr").describe_images(repositoryName=REPOSITORY, imageIds=[{"imageTag": tag}])
    except CloudError as error:
        if error.code == "ImageNotFoundException":
            return False
        raise
    return True


def _require_built(content: ImageContent, engine: Engine) -> None:
    if engine.inspect("image", content.reference) is None:
        raise ImageError(
            f"the image {content.reference} is not on this machine",
            hint=f"mtl-cloud image build --platform {content.platform}",
        )


@contextmanager
def _login(engine: Engine, clients: ClientMaker, registry: str) -> Iterator[None]:
    """Log the engine in to ECR during the push; no token stays in its configuration."""
    with translated("ecr"):
        answer = clients("ecr").get_authorization_token()
    user, _, password = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode().partition(":")
    engine.ask("login", "--username", user, "--password-stdin", registry, given=password)
    try:
        yield
    finally:
        engine.ask("logout", registry)
