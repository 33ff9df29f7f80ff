"""Cores and memory within the limits of a container, by files as Linux writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts import machine

#: Version 2: a limit of the outer group, of which the inner one knows nothing. Version 1: a folder each.
FILES = {
    2: {
        "/proc/self/cgroup": "0::/box/inner",
        "/sys/fs/cgroup/box/cpu.max": "150000 100000",
        "/sys/fs/cgroup/box/inner/cpu.max": "max 100000",
        "/sys/fs/cgroup/box/memory.max": "1000",
        "/sys/fs/cgroup/box/memory.current": "400",
        "/sys/fs/cgroup/box/memory.stat": "anon 100\ninactive_file 200\nactive_file 100",
        "/sys/fs/cgroup/box/inner/memory.max": "max",
        "/sys/fs/cgroup/box/inner/memory.current": "300",
    },
    1: {
        "/proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/box\n2:devices:/other",
        "/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000",
        "/sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "/sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1000",
        "/sys/fs/cgroup/memory/box/memory.usage_in_bytes": "400",
        "/sys/fs/cgroup/memory/box/memory.stat": "inactive_file 1\nactive_file 1\n"
        "total_inactive_file 200\ntotal_active_file 100",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "4000",
    },
}


@pytest.mark.parametrize("version", FILES)
def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    def lines(file: Path) -> list[str]:
        return FILES[version].get(str(file), "").splitlines()

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_lines", lines)
    assert machine.core_limit() == 1.5
    assert machine.usable_cores() == 2
    assert machine.available_memory() == 1000 - 400 + 300


def test_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    files = {"/proc/meminfo": ["MemTotal: 100 kB", "MemAvailable:   20 kB"]}
    monkeypatch.setattr(machine, "_lines", lambda file: files.get(str(file), []))
    assert machine.core_limit() is None
    assert machine.usable_cores() == 8
    assert machine.available_memory() == 20 * 1024


def test_this_machine_has_some_of_both() -> None:
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)
    assert machine.available_memory() > 1e6
