"""Processes of their own that need not import torch and the trainers: each is forked from a server that has.

A fresh interpreter spends ten seconds of computing on its imports, and every other second of these tests is less. That
a fresh one works too is seen by ``test_beside.py``, ``test_bad_inputs.py`` and the stage beside another one in
``test_kill.py``. The server is started by the first process and ends with pytest; torch has done nothing in it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from stages import NAMES

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["stages.__main__", "rlhf_pipeline.training", *(f"stages.{name}" for name in NAMES)])


@contextmanager
def instead_of_spawned() -> Iterator[None]:
    """Let ``stages.beside`` start its processes here."""
    with patch.object(multiprocessing, "get_context", lambda _: CONTEXT):
        yield


def start_rlhf(*arguments: Any, said: Path) -> BaseProcess:
    """The ``rlhf`` command; what it says is written to ``said``."""
    process = CONTEXT.Process(target=_rlhf, args=([*map(str, arguments)], said))
    process.start()
    return process


def _rlhf(arguments: list[str], said: Path) -> None:
    from stages.__main__ import main

    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, sys.stdout.fileno())
    os.dup2(out, sys.stderr.fileno())
    sys.argv = ["rlhf", *arguments]
    main()
