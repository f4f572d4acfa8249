"""The container engine: a wrapper around the command line of docker or podman."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from mtl_cloud.errors import EngineError

__all__ = ["ENGINE_VARIABLE", "Engine"]

ENGINE_VARIABLE = "MTL_CLOUD_ENGINE"
_PROGRAMS = ("docker", "podman")
_QUERY_TIMEOUT_S = 120.0
_NOT_RUN = 125
"""Exit code of ``run`` when the container was not started."""
_ABSENT = re.compile(r"no such (image|container)|(image|container) not known", re.IGNORECASE)


class Engine:
    """One engine's command line. Every method raises ``EngineError`` with the engine's last message."""

    def __init__(self, program: str, environ: Mapping[str, str]) -> None:
        self.program = program
        # docker 20.10 and older need this to build with BuildKit; later versions and podman ignore it.
        self._environ = {**environ, "DOCKER_BUILDKIT": "1"}

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> Engine:
        """The program of ``MTL_CLOUD_ENGINE``, or else docker or podman, whichever is found first in this order."""
        chosen = environ.get(ENGINE_VARIABLE)
        names = (chosen,) if chosen else _PROGRAMS
        found = [path for name in names if (path := shutil.which(name, path=environ.get("PATH")))]
        if not found:
            raise EngineError(
                f"no container engine found on the PATH (tried {', '.join(names)})",
                hint=f"install docker or podman, or name the program in {ENGINE_VARIABLE}",
            )
        return cls(found[0], environ)

    def ask(self, *arguments: str, given: str | None = None, timeout_s: float | None = _QUERY_TIMEOUT_S) -> str:
        """The output of a command. ``given`` is its standard input, so that secrets do not appear in process lists."""
        done = self._run(
            arguments, input=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout_s
        )
        if done.returncode:
            raise self._refusal(arguments, done.stderr.strip() or done.stdout.strip())
        output: str = done.stdout
        return output.strip()

    def run_to_end(self, *arguments: str, given: bytes) -> subprocess.CompletedProcess[str]:
        """Run a container to its end, whatever its exit code; ``given`` is its standard input."""
        done = self._run(("run", *arguments), input=given.decode(), capture_output=True, text=True)
        if done.returncode == _NOT_RUN:
            raise self._refusal(("run",), done.stderr.strip())
        return done

    def inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        """The engine's description of the ``image`` or ``container`` with that name; None if it does not exist."""
        try:
            found: list[dict[str, Any]] = json.loads(self.ask(kind, "inspect", name))
        except EngineError as error:
            if _ABSENT.search(str(error)):
                return None
            raise
        return found[0]

    def last_words(self, container: str) -> str:
        """The last line of a container's output, on either stream; empty if there is none."""
        done = self._run(
            ("logs", "--tail", "1", container), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        output: str = done.stdout
        return output.strip()

    def show(self, *arguments: str) -> None:
        """Run a long command; its progress goes to the user's standard error."""
        done = self._run(arguments, stdout=sys.stderr)
        if done.returncode:
            raise self._refusal(arguments, f"it ended with code {done.returncode}; its messages are above")

    def _run(self, arguments: tuple[str, ...], **options: Any) -> subprocess.CompletedProcess[Any]:
        try:
            return subprocess.run([self.program, *arguments], env=self._environ, check=False, **options)
        except subprocess.TimeoutExpired as error:
            raise self._refusal(arguments, f"no answer within {error.timeout:.0f} s") from error
        except OSError as error:
            raise self._refusal(arguments, str(error)) from error

    def _refusal(self, arguments: tuple[str, ...], words: str) -> EngineError:
        unreachable = "cannot connect to the docker daemon" in words.lower()
        return EngineError(
            f"{self.program} {arguments[0]}: {words}",
            hint=f"start the engine, and check that `{self.program} info` answers" if unreachable else None,
        )
