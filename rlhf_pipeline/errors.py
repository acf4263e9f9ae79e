"""Every exception that a user can meet, and the exit code that the command line gives it.

PipelineError                 exit 1
├── ConfigError               exit 2   a configuration file or an override is wrong
├── UsageError                exit 2   the command was called wrongly
├── DataError                 exit 1   records that cannot be used
├── ModelError                exit 1   a base model, tokenizer or template that cannot be used
├── ArtifactError             exit 1   a stage's folder cannot be used
│   ├── DamagedArtifact                a file is not what its manifest says
│   └── IncompatibleArtifact           made with another base, tokenizer, template or stop set
├── TrainingError             exit 1   training went wrong and was stopped
├── StoreError                exit 1   the judgement store cannot be used
│   ├── AnswerRefused                  an answer to a task that this person does not hold
│   └── LoginRefused                   a name and password, or an invitation, that lets nobody in
└── WaitingForPeople          exit 3   nothing is wrong: people have to judge first
"""

from __future__ import annotations

from collections.abc import Sequence


class PipelineError(Exception):
    """A mistake that the user can mend: what was found, where, and what to do next.

    Args:
        what: what was found and what was wanted, in one sentence or two.
        where: file, line or key, e.g. ``configs/demo.yaml:12: sft.learning_rate``.
        advice: the command or setting that mends it.
        details: one line each, shown indented (bad records, differing values …).
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | None = None, advice: str | None = None, details: Sequence[str] = ()
    ) -> None:
        self.what, self.where, self.advice, self.details = what, where, advice, tuple(details)
        lines = [f"{where}: {what}" if where else what]
        lines += [f"  {line}" for line in details]
        if advice:
            lines.append(f"  → {advice}")
        super().__init__("\n".join(lines))


class ConfigError(PipelineError):
    """A configuration file or a ``--set`` override is wrong."""

    exit_code = 2


class UsageError(PipelineError):
    """The command was called wrongly."""

    exit_code = 2


class DataError(PipelineError):
    """Records that cannot be used."""


class ModelError(PipelineError):
    """A base model, tokenizer or chat template that cannot be used."""


class ArtifactError(PipelineError):
    """A stage's folder cannot be used."""


class DamagedArtifact(ArtifactError):
    """A file of a finished stage is not what its manifest says."""


class IncompatibleArtifact(ArtifactError):
    """An input was made with another base, tokenizer, chat template or stop set."""


class TrainingError(PipelineError):
    """Training went wrong (a non-finite loss, a failed check) and was stopped."""


class StoreError(PipelineError):
    """The judgement store cannot be opened, read or written."""


class AnswerRefused(StoreError):
    """An answer to a task that this person does not hold, or that is not an answer to it."""


class LoginRefused(StoreError):
    """A name and password, or an invitation, that lets nobody in; after ``wait_seconds`` it may be tried again."""

    def __init__(self, what: str, *, wait_seconds: int = 0, advice: str | None = None) -> None:
        self.wait_seconds = wait_seconds
        super().__init__(what, advice=advice)


class WaitingForPeople(PipelineError):
    """Nothing is wrong: people have to judge before the chain can go on."""

    exit_code = 3
