from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from annotation_ui.guard import Guard
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import NewResponse, NewTask


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(tmp_path / "judgements.db")
    yield opened
    opened.close()


@pytest.fixture
def planted(planted_folder: tuple[Path, int], tmp_path: Path) -> Iterator[tuple[JudgementStore, int]]:
    """A round half judged by people with known habits, and its id."""
    folder, made = planted_folder
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    opened = JudgementStore.open(tmp_path / "judgements.db")
    yield opened, made
    opened.close()


def fill(store: JudgementStore) -> int:
    """A round of ten pairs, each judged once."""
    made = store.open_round("people", overlap=1, seed=3, source_digest="d", lease_seconds=60)
    store.add_tasks(
        made,
        [
            NewTask(
                Prompt((Message("user", f"question {i}"),)),
                (NewResponse(f"good {i}", "eos", "secret-policy"), NewResponse(f"bad {i}", "eos", "secret-policy")),
                meta={"source": "secret-source"},
            )
            for i in range(10)
        ],
    )
    store.set_guidelines(made, "Choose **well**.")
    return made


@pytest.fixture
def round_id(store: JudgementStore) -> int:
    """A round of ten pairs, each judged once."""
    return fill(store)


@pytest.fixture(scope="module")
def app_and_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guard, JudgementStore, int]]:
    """The whole app over a round of ten pairs (Gradio takes two seconds to build, so a file's tests share it)."""
    from annotation_ui.app import build, local_door

    opened = JudgementStore.open(tmp_path_factory.mktemp("app") / "judgements.db")
    made = fill(opened)
    yield build(opened, made, local_door(7860)).guard, opened, made
    opened.close()
