"""Freed memory goes back to the system, also from between blocks that are kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys
if sys.argv[1] == "give back":
    from rlhf_pipeline.allocator import give_back_freed_memory
    give_back_freed_memory()
large = b"x" * (30 << 20)
del large  # the C library now takes smaller blocks from its heap, unless it is told not to
blocks = [b"x" * (5 << 20) for _ in range(36)]
kept = blocks[::2]
blocks.clear()
print(int(open("/proc/self/statm").read().split()[1]) * 4 // 1024)
"""


def resident(how: str) -> int:
    """MiB of a process that keeps 90 of 180."""
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def test_holes_between_kept_blocks_are_given_back() -> None:
    assert resident("leave it") > 160
    assert resident("give back") < 130
