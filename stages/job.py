"""What a stage is given: its settings, its inputs, a folder to write into, and a voice."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_pipeline.artifacts import Artifact

if TYPE_CHECKING:
    from stages.settings import Settings


@dataclass(frozen=True)
class Job:
    """One run of one stage.

    ``folder`` is the unfinished folder; it may hold what an interrupted try left, from which the stage resumes.
    ``inputs`` are finished artifacts by stage name.
    """

    config: Any
    settings: Settings
    folder: Path
    inputs: Mapping[str, Artifact]
    run_folder: Path
    seed: int
    device: str
    first: bool = True
    """Whether this is the one process, or the one among several that writes files."""

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        say(f"  {text}")

    def report_on(self, what: str) -> Path | None:
        """The file for the readers of data, with every row that cannot be used; it is made where there is one.

        None in all but the first of several processes.
        """
        return self.folder / f"unusable_{what}.txt" if self.first else None

    def track(self, description: str, total: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """A progress bar; the value of the context advances it by so many."""
        return track(description, total)


def say(text: str) -> None:
    """Print a line, at once, also when the output is a pipe."""
    print(text, flush=True)


@contextlib.contextmanager
def track(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a plain line now and then."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bars:
            bar = bars.add_task(description, total=total)
            yield lambda amount: bars.update(bar, advance=amount)
        return
    done, spoken = 0, time.monotonic()

    def advance(amount: int) -> None:
        nonlocal done, spoken
        done += amount
        if time.monotonic() - spoken > 15:
            spoken = time.monotonic()
            say(f"  {description}: {done} of {total}")

    yield advance
