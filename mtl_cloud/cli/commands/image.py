"""``mtl-cloud image``: build, push and inspect the container image."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtl_cloud.cli.common import examples, output_options, region_option
from mtl_cloud.cli.output import print_json, print_pairs, print_table

if TYPE_CHECKING:
    from mtl_cloud.container.engine import Engine
    from mtl_cloud.container.image import ImageContent

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MEGABYTE = 1_000_000
_LAYERS = 8

_base = click.option(
    "--base",
    metavar="IMAGE",
    envvar="MTL_CLOUD_BASE_IMAGE",
    help="Base image; default python:3.11-slim. MTL_CLOUD_BASE_IMAGE sets it for all commands.",
)


def _platform(default: str) -> Callable[[F], F]:
    return click.option("--platform", metavar="OS/ARCH", help=f"Platform, as linux/amd64; default {default}.")


@click.group(
    "image",
    epilog=examples("image build", "image push --region eu-west-1", "image inspect --json"),
    no_args_is_help=True,
)
def command() -> None:
    """Build, push and inspect the image that every container runs.

    Its tag is a digest of its inputs (Dockerfile, package, requirements, base, platform), so equal content has the
    same tag everywhere. The engine is docker or podman; MTL_CLOUD_ENGINE names another program. Each subcommand has
    --json and --debug.

    JSON: {reference, ...}; see the subcommands.
    """


@command.command("build", epilog=examples("image build", "image build --base python:3.12-slim --platform linux/amd64"))
@_base
@_platform("this machine's")
@click.option(
    "--ca-bundle",
    type=_FILE,
    envvar=["PIP_CERT", "REQUESTS_CA_BUNDLE"],
    metavar="FILE",
    help="PEM file for a proxy's certificates; default PIP_CERT. Used during the build only; no layer contains it.",
)
@click.option("--pip-config", type=_FILE, metavar="FILE", help="pip.conf for the build; no layer contains it.")
@click.option("--network", metavar="MODE", help="The engine's network for the build, e.g. host.")
@click.option("--wheel", type=_FILE, metavar="FILE", help="Wheel of this package; default built here.")
@output_options
def build(
    *,
    base: str | None,
    platform: str | None,
    ca_bundle: Path | None,
    pip_config: Path | None,
    network: str | None,
    wheel: Path | None,
    as_json: bool,
) -> None:
    """Build the image of this version, unless it exists.

    JSON: {reference, was_there}.
    """
    from mtl_cloud.container.image import BuildOptions, build_image

    content, engine = _content(base, platform), _engine()
    was_there = engine.inspect("image", content.reference) is not None
    if not was_there:
        options = BuildOptions(ca_bundle=ca_bundle, pip_config=pip_config, network=network, wheel=wheel)
        build_image(content, engine, options)
    _say(content.reference, "built", was_there=was_there, as_json=as_json)


@command.command("push", epilog=examples("image push", "image push --repository registry.example.com/mtl-cloud"))
@_base
@_platform("linux/amd64, of the GPU instances")
@region_option("Region of the ECR repository.")
@click.option("--repository", metavar="HOST/NAME", help="Push to this repository instead of ECR; log in first.")
@output_options
def push(*, base: str | None, platform: str | None, region: str, repository: str | None, as_json: bool) -> None:
    """Push the image of this version to ECR, unless it exists there.

    JSON: {reference, was_there}.
    """
    from mtl_cloud.container.image import CLOUD_PLATFORM
    from mtl_cloud.container.registry import push_image, push_to_ecr

    content, engine = _content(base, platform or CLOUD_PLATFORM), _engine()
    if repository:
        pushed = push_image(content, engine, repository)
    else:
        from mtl_cloud.aws import AwsClients

        pushed = push_to_ecr(content, engine, AwsClients(region))
    _say(pushed.reference, "pushed", was_there=pushed.was_there, as_json=as_json)


@command.command("inspect", epilog=examples("image inspect", "image inspect --platform linux/amd64"))
@_base
@_platform("this machine's")
@output_options
def inspect(*, base: str | None, platform: str | None, as_json: bool) -> None:
    """Show the reference of this version's image, and its layers if it is built.

    JSON: {reference, base, platform, requirements, id, size_bytes, labels, layers: [{size_bytes, made_by}]}; the last
    four are null when the engine does not have it.
    """
    content, engine = _content(base, platform), _engine()
    found = engine.inspect("image", content.reference)
    report = _report(content, engine, found)
    if as_json:
        print_json(report)
    elif found is None:
        _print_content(content, "not built on this machine: mtl-cloud image build")
    else:
        _print_content(content, f"{found['Size'] / _MEGABYTE:,.0f} MB", found["Config"].get("Labels") or {})
        rows = [(f"{layer['size_bytes'] / _MEGABYTE:,.0f}", layer["made_by"][:100]) for layer in report["layers"]]
        print_table(["MB", "largest layers"], rows[:_LAYERS], right=[0])


def _report(content: ImageContent, engine: Engine, found: dict[str, Any] | None) -> dict[str, Any]:
    from mtl_cloud.container.image import layer_sizes

    layers = layer_sizes(engine, content.reference) if found else []
    return {
        "reference": content.reference,
        "base": content.base,
        "platform": content.platform,
        "requirements": content.pins,
        "id": found["Id"] if found else None,
        "size_bytes": found["Size"] if found else None,
        "labels": found["Config"].get("Labels") if found else None,
        "layers": [{"size_bytes": size, "made_by": made_by} for size, made_by in layers] if found else None,
    }


def _print_content(content: ImageContent, size: str, labels: Mapping[str, str] = MappingProxyType({})) -> None:
    pairs = [("image", content.reference), ("base", content.base), ("platform", content.platform), ("size", size)]
    print_pairs([*pairs, *sorted(labels.items())])


def _content(base: str | None, platform: str | None) -> ImageContent:
    from mtl_cloud.container.image import image_content

    return image_content(os.environ, base=base, platform=platform)


def _engine() -> Engine:
    from mtl_cloud.container.engine import Engine

    return Engine.find(os.environ)


def _say(reference: str, done: str, *, was_there: bool, as_json: bool) -> None:
    if as_json:
        print_json({"reference": reference, "was_there": was_there})
    else:
        click.echo(f"{reference}: {'already there' if was_there else done}")
