"""The machine's readings: of a container's cgroup or the whole machine, and of GPUs as nvidia-smi prints them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtl_cloud.supervise import host_metrics

NVIDIA_SMI = """#!/bin/sh
# One line for each GPU, values in the order of the query, "[N/A]" where there is none.
case "$*" in
  "--query-gpu=name --format=csv,noheader,nounits")
    echo "NVIDIA A100-SXM4-40GB"
    echo "NVIDIA A100-SXM4-40GB" ;;
  "--query-gpu=memory.used,memory.total,utilization.gpu --format=csv,noheader,nounits")
    echo "1024, 40960, 97"
    echo "0, 40960, [N/A]" ;;
  *) exit 2 ;;
esac
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _install(folder: Path, script: str) -> None:
    (folder / "nvidia-smi").write_text(script)
    (folder / "nvidia-smi").chmod(0o755)


def test_gpus_are_read_from_nvidia_smi(programs: Path, tmp_path: Path) -> None:
    _install(programs, NVIDIA_SMI)
    assert host_metrics.device_name() == "2 x NVIDIA A100-SXM4-40GB"
    assert host_metrics.gpu_count() == 2
    assert host_metrics.host_readings(tmp_path)["gpus"] == [
        {"memory_used_gib": 1.0, "memory_total_gib": 40.0, "utilization_percent": 97.0},
        {"memory_used_gib": 0.0, "memory_total_gib": 40.0, "utilization_percent": None},
    ]


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 9\n", "no program"])
def test_without_a_driver_that_answers_there_is_no_gpu(script: str | None, programs: Path) -> None:
    if script:
        _install(programs, script)
    assert (host_metrics.device_name(), host_metrics.gpu_count()) == ("cpu", 0)


def _write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / {"limit": "sys/fs/cgroup/memory.max", "used": "sys/fs/cgroup/memory.current"}.get(name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   25165824 kB\n"}
OF_THE_MACHINE = {"memory_used_gib": 8.0, "memory_total_gib": 32.0}


def test_memory_is_that_of_the_container_where_it_has_a_limit(tmp_path: Path) -> None:
    _write(tmp_path, limit=f"{4 * 2**30}\n", used=f"{3 * 2**30}\n", **MEMINFO)
    assert host_metrics._memory(tmp_path) == {"memory_used_gib": 3.0, "memory_total_gib": 4.0}


def test_memory_is_that_of_the_machine_where_nothing_limits_it(tmp_path: Path) -> None:
    assert host_metrics._memory(_write(tmp_path / "root group", **MEMINFO)) == OF_THE_MACHINE
    no_limit = _write(tmp_path / "no limit", limit="max\n", used=f"{3 * 2**30}\n", **MEMINFO)
    assert host_metrics._memory(no_limit) == OF_THE_MACHINE


def test_a_system_that_is_no_linux_has_no_readings_of_memory(tmp_path: Path) -> None:
    assert host_metrics._memory(tmp_path) == {}
