"""Real supervisors, guards and trainers, forked in milliseconds: a new interpreter needs seconds for its imports.

A fork server has imported torch and everything of ours. A supervisor is a fork of it; where it, and its guard after
it, would start a program of ours, it forks again and goes on in that program's ``main``. All else is as in a
container: processes of their own, sessions, the lifeline, the parent's death, signals, exit codes.
"""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

__all__ = ["fork_server", "start_forked"]

PRELOAD = [
    "fork_harness",
    "mtl_cloud.supervise.__main__",
    "mtl_cloud.train.__main__",
    "sklearn.datasets",  # of the embedded dataset
    "torch.utils.tensorboard",
]


def fork_server() -> ForkServerContext:
    """The fork server of this process. It imports modules when the first process is forked."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def start_forked(argv: list[str], environ: Mapping[str, str], errors: Path) -> ForkServerProcess:
    """A supervisor with the arguments of ``python -m mtl_cloud.supervise``; its messages go to the file ``errors``."""
    process = fork_server().Process(target=_supervise, args=(argv, dict(environ), str(errors)))
    process.start()
    return process


def _supervise(argv: list[str], environ: dict[str, str], errors: str) -> None:
    from mtl_cloud.supervise import __main__ as program
    from mtl_cloud.supervise import guard
    from mtl_cloud.supervise import trainer_process as trainer

    os.setsid()
    os.environ |= environ
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    for module in (trainer, guard):
        vars(module)["subprocess"] = _Subprocess
    _leave(lambda: program.main(argv))


class _Forked(subprocess.Popen[bytes]):
    """A ``Popen`` whose child continues in this interpreter, without exec."""

    def _execute_child(self, *arguments: Any) -> None:
        """Replaces fork and exec; pipes, waiting, signals and closing work as usual."""
        how = _SIGNATURE.bind(self, *arguments).arguments
        self.pid = os.fork()
        if self.pid == 0:
            _leave(lambda: _become(how))
        self._child_created = True
        self._close_pipe_fds(*(how[end] for end in _ENDS))  # type: ignore[attr-defined]  # private: in no stub


_SIGNATURE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]  # as above
_ENDS = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def _become(how: Mapping[str, Any]) -> int:
    """The steps of ``fork_exec`` in the child, in the same order."""
    if how["p2cwrite"] != -1:
        os.close(how["p2cwrite"])  # the parent's end: its closing must be heard
    for number, end in enumerate(("p2cread", "c2pwrite", "errwrite")):
        if how[end] != -1:
            os.dup2(how[end], number)
    if how["start_new_session"]:
        os.setsid()
    if how["process_group"] >= 0:
        os.setpgid(0, how["process_group"])
    if how["preexec_fn"]:
        how["preexec_fn"]()
    if how["env"] is not None:
        os.environ.clear()
        os.environ.update(how["env"])
    return _program(how["args"])


class _Subprocess:
    """Replaces ``subprocess`` in a module."""

    Popen = _Forked
    PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
    TimeoutExpired = subprocess.TimeoutExpired


def _program(args: list[str]) -> int:
    from mtl_cloud.supervise import guard

    _reset_signals()
    if args[3:4] == [guard.__file__]:
        return guard.main(args[4:])
    assert args[1:] == ["-m", "mtl_cloud.train"], args
    from mtl_cloud.train.__main__ import main

    return main()


def _reset_signals() -> None:
    """As ``exec`` does."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _leave(main: Callable[[], int]) -> None:
    """Exit as an interpreter does, but skip the cleanup of the parent's state."""
    try:
        code = main()
    except BaseException:  # noqa: BLE001  # printed, as by an interpreter
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
