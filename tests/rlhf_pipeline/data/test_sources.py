"""Mistakes in the configuration of sources are caught when it is read."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from rlhf_pipeline.config import describe
from rlhf_pipeline.data import DataConfig, SourceConfig


def test_a_bare_path_is_a_source() -> None:
    data = DataConfig.model_validate({"prompts": "pocket", "preferences": {"path": "x.jsonl", "limit": 3}})
    assert data.prompts == SourceConfig(path="pocket")
    assert data.preferences == SourceConfig(path="x.jsonl", limit=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": ""}, "at least 1 character"),
        ({"path": "x", "format": "hhh"}, "did you mean hh?"),
        ({"path": "x", "format": "parquet"}, "known: auto, judged"),
        ({"path": "x", "columns": {"promt": "q"}}, "did you mean prompt?"),
        ({"path": "x", "limit": 0}, "greater than or equal to 1"),
        ({"path": "x", "on_bad_rows": "ignore"}, "'error' or 'drop'"),
        ({"path": "x", "turns": "first"}, "'last' or 'all'"),
    ],
)
def test_mistakes_in_a_source(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig.model_validate(values)
    assert message in str(caught.value)


@pytest.mark.parametrize("held_out", [0, -1, 1.5, float("nan"), float("inf"), "some"])
def test_held_out_is_a_fraction_or_a_number(held_out: object) -> None:
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"held_out": held_out})
    assert DataConfig(held_out=0.5).held_out == 0.5
    assert DataConfig(held_out=300).held_out == 300


def test_what_stands_in_for_a_source_that_is_not_set() -> None:
    prompts, demonstrations, preferences = (SourceConfig(path=name) for name in ("a", "b", "c"))
    data = DataConfig(prompts=prompts, demonstrations=demonstrations, preferences=preferences)
    assert (data.prompt_source(), data.demonstration_source()) == (prompts, demonstrations)
    data = DataConfig(demonstrations=demonstrations, preferences=preferences)
    assert data.prompt_source() == demonstrations
    data = DataConfig(preferences=preferences)
    assert (data.prompt_source(), data.demonstration_source()) == (preferences, preferences)
    assert DataConfig(prompts=prompts).demonstration_source() is None


def test_every_key_has_help() -> None:
    assert all(text for schema in (SourceConfig, DataConfig) for _, _, text in describe(schema))


def test_reading_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys, rlhf_pipeline.data; heavy = {'torch', 'datasets', 'transformers', 'pyarrow', 'numpy', 'pandas'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
