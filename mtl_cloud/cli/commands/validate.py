"""``mtl-cloud validate``: check job files and report every mistake."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import click

from mtl_cloud.cli.common import examples, output_options, overrides_option
from mtl_cloud.cli.output import print_json, print_warnings
from mtl_cloud.errors import Problem, SpecError


class Check(NamedTuple):
    """The result for one file."""

    file: str
    job: str | None
    """The valid job's name."""
    warnings: tuple[Problem, ...]
    problems: tuple[Problem, ...]

    @property
    def valid(self) -> bool:
        return not self.problems

    def document(self) -> dict[str, object]:
        warnings, problems = ([asdict(found) for found in group] for group in (self.warnings, self.problems))
        return {"file": self.file, "valid": self.valid, "job": self.job, "warnings": warnings, "problems": problems}


@click.command("validate", epilog=examples("validate jobs/*.yaml", "validate job.yaml --set training.batch_size=32"))
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(dir_okay=False))
@overrides_option
@output_options
def command(files: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> int:
    """Check job files. Every mistake is reported with file, line and column. Starts nothing.

    Exit code 2 if a file has a mistake.

    JSON: {valid, files: [{file, valid, job, warnings, problems}]}; warnings and problems are lists of
    {file, line, column, path, message, hint}.
    """
    checks = [_check(file, overrides) for file in files]
    valid = all(check.valid for check in checks)
    if as_json:
        print_json({"valid": valid, "files": [check.document() for check in checks]})
    else:
        for check in checks:
            _print_check(check)
    return 0 if valid else SpecError.exit_code


def _check(file: str, overrides: tuple[str, ...]) -> Check:
    from mtl_cloud.jobspec.load import load_job

    try:
        loaded = load_job(file, overrides=overrides)
    except SpecError as error:
        return Check(file, None, (), error.problems)
    return Check(file, loaded.job.name, loaded.warnings, ())


def _print_check(check: Check) -> None:
    if check.valid:
        click.echo(f"{check.file}: {click.style('valid', fg='green')}")
    for problem in check.problems:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {problem}", err=True)
    print_warnings(map(str, check.warnings))
