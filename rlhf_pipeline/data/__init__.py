"""One reader for prompts, demonstrations and preferences of any usual format, and the split into two sides.

``sources`` is the configuration, ``files`` makes rows of files, ``formats`` makes conversations of rows, ``reading``
makes records of both, ``splits`` keeps dialogues apart.
"""

from rlhf_pipeline.data.formats import FORMATS
from rlhf_pipeline.data.reading import (
    Loaded,
    read_candidates,
    read_demonstrations,
    read_preferences,
    read_prompts,
)
from rlhf_pipeline.data.sources import DataConfig, SourceConfig
from rlhf_pipeline.data.splits import Split, dialogue_key, is_held_out, make_split, split_by_prompt

__all__ = [
    "FORMATS",
    "DataConfig",
    "Loaded",
    "SourceConfig",
    "Split",
    "dialogue_key",
    "is_held_out",
    "make_split",
    "read_candidates",
    "read_demonstrations",
    "read_preferences",
    "read_prompts",
    "split_by_prompt",
]
