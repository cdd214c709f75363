"""How much memory a process may still take here: of the machine, its control groups, its GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that may still be taken."""

    ram: int | None
    """None where the system does not tell."""
    gpu: int
    """Of the current CUDA device; 0 without one."""

    @classmethod
    def here(cls) -> "Room":
        gpu = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
        return cls(ram_free(), gpu)

    def on(self, device: Device) -> int | None:
        return self.ram if device == "cpu" else self.gpu

    def holds(self, size: int, device: Device) -> bool:
        """Whether there is room for so much; where it can't be told, there is."""
        free = self.on(device)
        return free is None or size <= free


def ram_free(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: the least of what the machine has free and its control
    groups and its own limit leave. None where the system has no /proc.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    table = {name: value for name, _, value in (line.partition(":") for line in lines)}
    machine = int(table["MemAvailable"].split()[0]) * 1024
    return max(0, min([machine, *_groups_free(root), *_limit_free(root)]))


def _groups_free(root: Path) -> list[int]:
    """What each control group above this process leaves (versions 1 and 2). Their page cache counts
    as used by the kernel, but is given up when memory is short.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[int] = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version = 1 if controllers else 2
        top = root / "sys/fs/cgroup" / ("memory" if version == 1 else "")
        group = top / path.strip("/")
        while True:
            left = _group_free(group, version)
            found += [] if left is None else [left]
            if group == top or top not in group.parents:
                break
            group = group.parent
    return found


def _group_free(group: Path, version: int) -> int | None:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    try:
        limit, used = (int((group / name).read_text()) for name in names[:2])
        stat = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached = next((int(value) for name, value in stat if name == names[2]), 0)
    except (OSError, ValueError):  # no such group seen from here, or "max"
        return None
    return limit - used + cached


def _limit_free(root: Path) -> list[int]:
    """What `ulimit -v` leaves."""
    import resource  # where there is /proc, there is this

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    pages = int((root / "proc/self/statm").read_text().split()[0])
    return [limit - pages * resource.getpagesize()]
