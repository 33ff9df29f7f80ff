"""What the machine has for this process: cores and memory, within what a container or a batch system allows.

By the standard library alone, so that it can be asked before anything heavy is imported. Linux alone tells of
limits and of memory.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

#: Less is told in MB. Bytes.
SMALL = 5e7


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer where its group's limit says so."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = core_limit()
    return max(1, min(bound, round(limit) if limit else bound))


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor.

    Args:
        cpuinfo: where Linux tells of it.
    """
    names = (line.partition(":")[2].strip() for line in _lines(cpuinfo) if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def machine() -> str:
    """The processor and how many of its cores may be used."""
    return f"{processor()}, {usable_cores()} cores"


def core_limit() -> float | None:
    """The processor time that the groups of this process allow, in cores; None without a limit."""
    shares = []
    for folder in _groups("cpu"):
        numbers = " ".join(_lines(folder / "cpu.max")[:1]).split()
        if not numbers:  # version 1 has a file for each
            numbers = [*_lines(folder / "cpu.cfs_quota_us")[:1], *_lines(folder / "cpu.cfs_period_us")[:1]]
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            shares.append(int(numbers[0]) / int(numbers[1]))
    return min(shares, default=None)


def available_memory() -> float:
    """Bytes that this process may still take: the least of what the system, its groups and its limit leave.

    Infinite where the system does not tell.
    """
    return min([math.inf, *_left_by_system(), *_left_by_groups(), *_left_by_limit()])


def gigabytes(size: float) -> str:
    """Bytes in words; 1 GB is 10^9 of them."""
    return f"{size / 1e9:.1f} GB" if size >= SMALL else f"{size / 1e6:.1f} MB"


def _left_by_system() -> Iterator[float]:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024.0


def _left_by_groups() -> Iterator[float]:
    """Of memory limits; files that are cached or mapped do not count as used."""
    names = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
    for place in _groups("memory"):
        for limit, used in names.items():
            allowed = _number(place / limit)  # None of "max": the rest, of most machines, is not read
            taken = None if allowed is None else _number(place / used)
            if allowed is not None and taken is not None:
                entries = [line.split() for line in _lines(place / "memory.stat")]
                stat = {name: int(value) for name, value in entries}
                # version 1 has these of the group alone, and of all below it
                lists = ("inactive_file", "active_file")
                kept = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in lists)
                yield float(allowed - taken + kept)


def _left_by_limit() -> Iterator[float]:
    """Of the address space (`ulimit -v`)."""
    try:
        import resource  # not on Windows
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    sizes = _lines(Path("/proc/self/statm"))
    if limit != resource.RLIM_INFINITY and sizes:
        yield float(limit - int(sizes[0].split()[0]) * resource.getpagesize())


def _groups(controller: str) -> Iterator[Path]:
    """Control groups of this process, version 2 and 1, from the innermost out; a container has one."""
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, name = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = Path("/sys/fs/cgroup", controller if controllers else "")
            group = root / name.strip("/")
            yield from (place for place in (group, *group.parents) if place.is_relative_to(root))


def _number(file: Path) -> int | None:
    """The whole number that a file of the system holds; None where it holds another word, or is not there."""
    line = " ".join(_lines(file)[:1])
    return int(line) if line.isdecimal() else None


def _lines(file: Path) -> list[str]:
    """Lines of a file of the system; none where there is no such file."""
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
