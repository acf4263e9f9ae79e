"""A call in a process of its own: a stage beside another one, or one of several processes at one stage."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from rlhf_pipeline.errors import TrainingError
from stages.job import say


class Beside:
    """One call in a fresh process; what it says is said here, line by line, under its name.

    Args:
        name: of the stage.
        call: a function of a module; it, its arguments and its value travel between the processes.
        tell: is given each line that it says; null says it here.
    """

    def __init__(
        self, name: str, call: Callable[..., Any], *arguments: Any, tell: Callable[[str], None] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA, or torch's threads
        self._name, self._tell = name, tell or self._say
        self._from_there, there = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(there, call, arguments), daemon=True)
        self._process.start()
        there.close()
        self._value: Any = None
        self._error: BaseException | None = None
        self.killed: int | None = None
        """The exit code, where it was ended from outside."""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def alive(self) -> bool:
        """Whether it is still at work."""
        return self._listener.is_alive()

    def failure(self) -> BaseException | None:
        """What it has ended with, where it is no longer alive and has no value."""
        return None if self.alive() else self._error

    def result(self) -> Any:
        """Wait for the value.

        Raises:
            TrainingError: the process was killed.
            Exception: whatever the call raised.
        """
        self._listener.join()
        self._process.join()
        if self._error is not None:
            raise self._error
        return self._value

    def stop(self) -> None:
        """End it where it is; its stage resumes at the next start."""
        self._process.terminate()
        self._process.join()

    def _say(self, line: str) -> None:
        say(line if line.startswith(f"{self._name}:") else f"  {self._name} | {line.strip()}")

    def _listen(self) -> None:
        try:
            while True:
                kind, content = self._from_there.recv()
                if kind == "said":
                    self._tell(content)
                    continue
                self._value, self._error = (content, None) if kind == "value" else (None, content)
                return
        except EOFError:
            self._process.join()
            self.killed = self._process.exitcode
            self._error = TrainingError(
                f"the process of {self._name} was ended from outside (exit code {self.killed})",
                advice="it may have lacked memory: try --set run.parallel=1; the same command goes on from here",
            )


class _Voice(io.TextIOBase):
    """What is printed goes to the other process, line by line."""

    def __init__(self, to: Connection) -> None:
        self._to, self._line = to, ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._to.send(("said", line))
        return len(text)


def _work(there: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    from stages.__main__ import quiet_libraries

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches both: the first process decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    quiet_libraries()
    try:
        with contextlib.redirect_stdout(_Voice(there)):
            value = call(*arguments)
        there.send(("value", value))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # the traceback itself does not travel
        try:
            there.send(("error", error))
        except Exception:
            there.send(("error", RuntimeError("".join(traceback.format_exception(error)))))


def _leave_with_parent() -> None:
    """A first process that was killed leaves nobody who writes into its run folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
