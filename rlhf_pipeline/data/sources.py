"""Where records come from: the configuration of data sources."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlhf_pipeline.config import Section
from rlhf_pipeline.data.formats import COLUMNS, FORMATS


class SourceConfig(Section):
    """One source of records; a bare path stands for ``{path: …}``."""

    path: str = Field(min_length=1)
    """A .jsonl, .json, .csv, .txt (a prompt a line) or .parquet file, a folder of them, a hub id, or ``pocket``.

    All but .parquet may be compressed as .gz.
    """
    format: str = "auto"
    """How rows are written: a format's name, or ``auto`` to recognise it by its columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of columns, ours to the file's, e.g. ``{prompt: question, completion: answer}``."""
    split: str | None = None
    """Hub only: which split; null is ``train``."""
    subset: str | None = None
    """Hub only: which configuration of the data set; null is its default."""
    revision: str | None = None
    """Hub only: branch, tag or commit; null is the default branch."""
    limit: int | None = Field(None, ge=1)
    """Rows to read from the start; for ``pocket`` how many to generate. null reads all."""
    turns: Literal["last", "all"] = "last"
    """Of a conversation, learn from the last assistant turn, or from each with what stands before it."""
    on_bad_rows: Literal["error", "drop"] = "error"
    """Rows that cannot be used: ``error`` names them all and stops, ``drop`` leaves them out and counts them."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value != "auto" and value not in FORMATS:
            raise ValueError(f"no such format; {_near(value, ('auto', *FORMATS))}")
        return value

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: dict[str, str]) -> dict[str, str]:
        for ours in value:
            if ours not in COLUMNS:
                raise ValueError(f"{ours} is no column that a format reads; {_near(ours, COLUMNS)}")
        return value


class DataConfig(Section):
    """Prompts, demonstrations and preferences, and how much of them is held out."""

    demonstrations: SourceConfig | None = None
    """What supervised fine-tuning imitates; of preferences, the chosen side."""
    prompts: SourceConfig | None = None
    """What the policy is asked; of demonstrations and preferences, their prompts."""
    preferences: SourceConfig | None = None
    """Judgements made elsewhere: with ``collect.judges: imported`` they are what is learnt from, in place of judgements
    made here. Whoever judges, they stand in for ``demonstrations`` and ``prompts`` where those are null."""
    held_out: float = 0.1
    """Kept from training by the first user turn: a fraction below 1, or from 1 on an exact number of ``prompts``."""
    system: str | None = None
    """A system message for conversations that have none."""

    @field_validator("held_out")
    @classmethod
    def _fraction_or_count(cls, value: float) -> float:
        if not 0 < value < 1 and not (value >= 1 and value.is_integer()):
            raise ValueError("wanted a fraction between 0 and 1, or a whole number of prompts")
        return value

    def demonstration_source(self) -> SourceConfig | None:
        """Where demonstrations come from: their own source, else the chosen sides of the preferences."""
        return self.demonstrations or self.preferences

    def prompt_source(self) -> SourceConfig | None:
        """Where prompts come from: their own source, else those of the demonstrations or of the preferences."""
        return self.prompts or self.demonstrations or self.preferences


def _near(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
