"""The prompts of a run and the one rule that splits every data set of it: no dialogue is on both sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_pipeline.data import Split, make_split, read_prompts
from rlhf_pipeline.errors import ConfigError
from stages.job import Job

if TYPE_CHECKING:
    from rlhf_pipeline.records import Prompt


@dataclass(frozen=True)
class RunPrompts:
    """The distinct prompts of ``data.prompts`` (or of what stands in for it), by side."""

    train: list[Prompt]
    held_out: list[Prompt]


def load_prompts(job: Job) -> RunPrompts:
    """Read and split the prompts, and say what was read.

    Raises:
        ConfigError: the run has no data with prompts.
        DataError: unusable rows, or nothing on one of the sides.
    """
    prompts = _read(job, job.say)
    split = make_split(job.settings.data.held_out, seed=job.settings.run.seed, prompts=prompts)
    train, held_out = split.divide(prompts)
    return RunPrompts(train, held_out)


def split_rule(job: Job) -> Split:
    """The run's split, for demonstrations and preferences too.

    A fraction needs no data; a number counts the run's prompts, and the same dialogues are then held out everywhere.
    """
    held_out = job.settings.data.held_out
    return make_split(held_out, seed=job.settings.run.seed, prompts=_read(job) if held_out >= 1 else [])


def has_gold_judge(job: Job) -> bool:
    """Whether responses to this run's prompts can be scored exactly: the built-in ones can."""
    source = job.settings.data.prompt_source()
    return source is not None and source.path == "pocket"


def _read(job: Job, say: Callable[[str], None] | None = None) -> list[Prompt]:
    data = job.settings.data
    source = data.prompt_source()
    if source is None:
        raise ConfigError("there is no data with prompts", where="data", advice="set data.prompts, e.g. {path: pocket}")
    loaded = read_prompts(source, system=data.system, seed=job.settings.run.seed, report=job.report_on("prompts"))
    if say is not None:
        say(loaded.summary())
    return loaded.records
