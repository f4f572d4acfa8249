"""CPU time of a command's start, compared with the bare interpreter and two peers.

    python benchmarks/cli_startup.py [--runs 15] [--no-peers | --peer sky=/venv/bin/sky --peer dstack=...]

Peers are installed once, each into its own virtual environment below ``--cache``. Rounds are interleaved, so that load
of the machine slows all commands equally; the table shows medians of user + system time of the whole process tree.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "jobs" / "quickstart.yaml"
PEERS = {"sky": "skypilot[aws]", "dstack": "dstack"}
"""Executable -> requirement."""


def main() -> None:
    options = _parse_arguments()
    commands = _our_commands(options.ours) | ({} if options.no_peers else _peer_commands(options))
    cpu_ms = measure(commands, options.runs)
    if options.json:
        print(json.dumps({name: round(value, 1) for name, value in cpu_ms.items()}, indent=2))
    else:
        _print_table(cpu_ms)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="interleaved rounds")
    parser.add_argument("--ours", type=Path, default=Path(sys.executable).with_name("mtl-cloud"), help="our executable")
    parser.add_argument("--no-peers", action="store_true", help="measure ours only")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=EXECUTABLE", help="use an installed peer")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mtl-cloud-peers")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _our_commands(executable: Path) -> dict[str, list[str]]:
    ours, job = str(executable), str(JOB)
    return {
        "python -c pass": [str(executable.with_name("python")), "-c", "pass"],
        "mtl-cloud --help": [ours, "--help"],
        "mtl-cloud validate": [ours, "validate", job],
        "mtl-cloud plan": [ours, "plan", job],
    }


def _peer_commands(options: argparse.Namespace) -> dict[str, list[str]]:
    given = dict(peer.split("=", 1) for peer in options.peer)
    found = {name: given.get(name) or _install(name, PEERS[name], options.cache) for name in PEERS}
    return {f"{name} --help": [str(executable), "--help"] for name, executable in found.items()}


def _install(name: str, requirement: str, cache: Path) -> Path:
    folder = cache / name
    executable = folder / "bin" / name
    if not executable.exists():
        print(f"installing {requirement} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", requirement], check=True)
    return executable


def measure(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, float]:
    """Median CPU milliseconds of each command, after one unmeasured round that writes byte code and fills caches."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for round_number in range(runs + 1):
        for name, command in commands.items():
            spent = _cpu_ms(command)
            if round_number:
                found[name].append(spent)
    return {name: statistics.median(values) for name, values in found.items()}


def _cpu_ms(command: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def _print_table(cpu_ms: Mapping[str, float]) -> None:
    bare, ours = cpu_ms["python -c pass"], cpu_ms["mtl-cloud --help"]
    print(f"{'command':<20} {'CPU ms':>8} {'over bare':>10} {'x bare':>7} {'x our --help':>13}")
    for name, value in cpu_ms.items():
        print(f"{name:<20} {value:8.1f} {value - bare:10.1f} {value / bare:7.1f} {value / ours:13.1f}")


if __name__ == "__main__":
    main()
