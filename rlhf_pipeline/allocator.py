"""Memory of the CPU: what is freed goes back to the system at once, and comes in pages of 2 MB."""

from __future__ import annotations

import contextlib
import ctypes
import os

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 4 * 2**20


def give_back_freed_memory() -> None:
    """Let every block of 4 MB or more be a mapping of its own, which ends when the block is freed.

    By itself glibc raises this limit to 32 MB as soon as large blocks come and go (mallopt(3), M_MMAP_THRESHOLD), and
    then keeps the pieces of one pass beside those of the next: a training process grows to about twice what it uses.
    New mappings cost time page by page: for blocks from 2 MB on it was a sixth of PPO's (25 million weights, 16
    responses), from 4 MB on a twelfth, for a twelfth more memory. torch is told to ask for huge pages; it reads that
    once, so call this before torch is imported. No number changes. Other C libraries are left as they are.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
