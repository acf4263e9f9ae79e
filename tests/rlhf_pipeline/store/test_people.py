from __future__ import annotations

from collections.abc import Iterator

import pytest

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.people import SESSION_SECONDS, User, clean_name


@pytest.fixture
def store(location: str) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(location)
    yield opened
    opened.close()


def test_a_person_is_the_same_whatever_the_case_and_blanks(store: JudgementStore) -> None:
    ann = store.user("Ann Lee")
    assert store.user("  ann   LEE ") == ann
    assert store.user("Ann") != ann


def test_a_person_does_not_judge_under_the_name_of_a_program(store: JudgementStore) -> None:
    robot = store.user("Ada the expert", "simulated")
    with pytest.raises(StoreError, match="known as simulated"):
        store.user("ada the EXPERT")
    assert store.user("Ada the expert", "simulated") == robot


def test_a_session_names_its_person_until_it_expires_or_ends(store: JudgementStore) -> None:
    people, ann = store.people, store.user("Ann")
    token = people.start_session(ann, now=0)
    assert people.of_session(token, now=0) == User(ann, "Ann", "annotator")
    assert people.of_session(token, now=SESSION_SECONDS * 1000 + 1) is None
    assert people.of_session(token + "x", now=0) is None
    people.end_session(token)
    assert people.of_session(token, now=0) is None


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\x00b", "a\u202eb", "a\ud800"])
def test_names_that_cannot_be_shown(name: str) -> None:
    with pytest.raises(StoreError):
        clean_name(name)


@pytest.mark.parametrize("name", ["علی‌رضا", "李小龍", "José", "O'Neil-Smith 2"])
def test_names_of_all_the_world(name: str) -> None:
    assert clean_name(name) == name
