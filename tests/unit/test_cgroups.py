from __future__ import annotations

from pathlib import Path

import pytest

from bert_serving.server.cgroups import Cgroups, Memory

MIB = 1 << 20


def written(root: Path, files: dict[str, str]) -> Cgroups:
    """Return the groups that files describe; `own` says which are the process's."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Cgroups(root / "fs", root / "own")


VERSION_2 = {
    "own": "0::/system.slice/bert.service\n",
    "fs/system.slice/memory.max": f"{200 * MIB}\n",
    "fs/system.slice/memory.current": f"{150 * MIB}\n",
    "fs/system.slice/memory.stat": f"anon 5\ninactive_file {20 * MIB}\n",
    "fs/system.slice/bert.service/memory.max": "max\n",
    "fs/system.slice/bert.service/memory.current": f"{100 * MIB}\n",
    "fs/system.slice/bert.service/memory.events": "low 0\noom 3\noom_kill 2\n",
    "fs/system.slice/bert.service/cpu.max": "150000 100000\n",
    "fs/system.slice/cpu.max": "max 100000\n",
}
VERSION_1 = {
    "own": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
    "fs/memory/docker/abc/memory.limit_in_bytes": f"{100 * MIB}\n",
    "fs/memory/docker/abc/memory.usage_in_bytes": f"{90 * MIB}\n",
    "fs/memory/docker/abc/memory.stat": f"total_inactive_file {30 * MIB}\n",
    "fs/memory/docker/abc/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "fs/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "fs/memory/memory.usage_in_bytes": "1\n",
    "fs/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000\n",
    "fs/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
}


@pytest.mark.parametrize(
    ("files", "memory"),
    [(VERSION_2, Memory(200 * MIB, 70 * MIB)), (VERSION_1, Memory(100 * MIB, 40 * MIB))],
    ids=["version 2", "version 1"],
)
def test_limits_and_kills_are_read_in_both_versions(
    tmp_path: Path, files: dict[str, str], memory: Memory
) -> None:
    groups = written(tmp_path, files)
    assert groups.memory() == memory
    assert groups.cpu_quota() == 1.5
    assert groups.oom_kills() == 2


def test_in_a_container_the_root_is_the_own_group(tmp_path: Path) -> None:
    files = {
        "own": "0::/../../elsewhere\n",
        "fs/memory.max": f"{10 * MIB}",
        "fs/memory.current": f"{MIB}",
        "fs/cpu.max": "50000 100000",
    }
    groups = written(tmp_path, files)
    assert groups.memory() == Memory(10 * MIB, 9 * MIB)
    assert groups.cpu_quota() == 0.5


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"own": "0::/\n"},
        {"own": "0::/a\n", "fs/a/memory.max": "max", "fs/a/cpu.max": "max 100000"},
        {"own": "2:cpu:/\n", "fs/cpu/cpu.cfs_quota_us": "-1", "fs/cpu/cpu.cfs_period_us": "9"},
        {"own": "4:memory:/\n", "fs/memory/memory.limit_in_bytes": "no number"},
    ],
)
def test_without_a_limit_there_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    groups = written(tmp_path, files)
    assert groups.memory() is None
    assert groups.cpu_quota() is None
