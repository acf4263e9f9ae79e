"""What is said of each person: by hand on a few rows, then people with known habits are told apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rlhf_pipeline.annotators import GUESSING_BAR, AnnotatorQuality, annotator_quality, dawid_skene_of
from rlhf_pipeline.quality import comparisons_of
from rlhf_pipeline.store.records import JudgementRow, TaskRow
from tests.rlhf_pipeline.made_up_round import NOW, PEOPLE, SKILLS, planted, said, task


def people(tasks: Sequence[TaskRow], rows: Sequence[JudgementRow]) -> dict[str, AnnotatorQuality]:
    by_id = {t.id: t for t in tasks}
    model = dawid_skene_of(comparisons_of(by_id, [r for r in rows if r.purpose in ("judge", "gold")]))
    return {a.user: a for a in annotator_quality(by_id, rows, model)}


def test_known_answers_by_hand() -> None:
    tasks = [task(n, "x", "y", gold=1) for n in range(1, 6)] + [task(6, "x", "y")]
    answers: list[int | str] = [1, 1, 2, "tie", "skip"]
    rows = [said(n, n, "ann", answer, purpose="gold") for n, answer in enumerate(answers, 1)]
    rows += [said(6, 6, "ann", 1), said(7, 1, "ann", 2, purpose="training"), said(8, 2, "ann", 1, purpose="training")]
    ann = people(tasks, rows)["ann"]
    assert (ann.gold.hits, ann.gold.n) == (2, 4)
    assert (ann.training.hits, ann.training.n) == (1, 2)
    assert (ann.judgements, ann.skips) == (1, 0)
    assert (ann.first_shown.n, ann.ties.n) == (4, 5), "without the skip and without the training"


def test_repeats_by_hand() -> None:
    tasks = [task(n, "x", "y") for n in (1, 2, 3)]
    rows = [said(n, n, "ann", 1) for n in (1, 2)]
    rows += [said(4, 1, "ann", 1, purpose="repeat"), said(5, 2, "ann", "tie", purpose="repeat")]
    rows += [said(6, 3, "ann", 2, purpose="repeat"), said(7, 1, "bob", 2)]
    ann = people(tasks, rows)["ann"]
    assert (ann.repeats.hits, ann.repeats.n) == (1, 2), "what was never judged before is no repeat"


def test_position_and_length_by_hand() -> None:
    tasks = [task(1, "short", "much longer"), task(2, "longest of all", "short"), task(3, "same", "size")]
    rows = [
        said(1, 1, "ann", 2, shown_order=(12, 11)),  # the longer one, shown first
        said(2, 2, "ann", 2, shown_order=(21, 22)),  # the shorter one, shown last
        said(3, 3, "ann", 1, shown_order=(31, 32)),  # shown first; no longer one
        said(4, 3, "bob", "tie"),
    ]
    found = people(tasks, rows)
    assert (found["ann"].first_shown.hits, found["ann"].first_shown.n) == (2, 3)
    assert (found["ann"].longer.hits, found["ann"].longer.n) == (1, 2)
    assert (found["bob"].first_shown.n, found["bob"].ties.hits, found["bob"].ties.n) == (0, 1, 1)
    assert (found["ann"].ties.hits, found["ann"].ties.n) == (0, 3)


def test_speed_by_hand() -> None:
    tasks = [task(1, "word " * 40, "word " * 39)]  # with the prompt's one 80 words: ten seconds at the fastest
    rows = [said(1, 1, "ann", 1, active_ms=9_000), said(2, 1, "bob", 1, active_ms=11_000)]
    found = people(tasks, rows)
    assert (found["ann"].too_fast.hits, found["bob"].too_fast.hits) == (1, 0)
    assert (found["ann"].median_seconds, found["bob"].median_seconds) == (9, 11)
    assert found["ann"].last_at == NOW


def test_ranking_bias_compares_the_ends() -> None:
    tasks = [task(1, "a", "bbb", "cc")]
    row = said(1, 1, "ann", "ranking", ranking=((13,), (11,), (12,)), shown_order=(13, 11, 12))
    ann = people(tasks, [row])["ann"]
    assert (ann.first_shown.hits, ann.first_shown.n) == (1, 1)
    assert (ann.longer.hits, ann.longer.n) == (0, 1), "the shortest stands before the longest"


def test_a_ranking_counts_once_for_reliability() -> None:
    tasks = [task(n, "a", "b", "c", "d") for n in range(1, 6)]
    order = {n: tuple((10 * n + place,) for place in (1, 2, 3, 4)) for n in range(1, 6)}
    rows = [
        said(100 * len(who) + n, n, who, "ranking", ranking=order[n]) for who in ("ann", "bobby") for n in range(1, 6)
    ]
    ann = people(tasks, rows)["ann"]
    assert ann.reliability is not None
    assert ann.reliability.n == 5, "thirty comparisons in five rankings"
    assert ann.reliability.right > 0.8


def test_nobody_else_no_reliability() -> None:
    tasks = [task(n, "x", "y") for n in (1, 2)]
    assert people(tasks, [said(1, 1, "ann", 1), said(2, 2, "bob", 1)])["ann"].reliability is None


@pytest.mark.parametrize("seed", range(3))
def test_people_with_known_habits(seed: int) -> None:
    tasks, rows = planted(seed)
    found = people(tasks, rows)
    assert set(found) == set(PEOPLE)
    right = {name: found[name].reliability.right for name in found}
    assert sorted(SKILLS, key=lambda name: -right[name]) == list(SKILLS)
    for name, skill in SKILLS.items():
        assert right[name] == pytest.approx(skill, abs=0.08)
        assert found[name].gold.low - 0.05 <= skill <= found[name].gold.high + 0.05
        assert found[name].reliability.n == sum(r.user == name and r.purpose in ("judge", "gold") for r in rows)
    assert right["left"] == pytest.approx(0.5, abs=0.1)
    assert found["left"].first_shown.value == 1
    assert found["long"].longer.value == 1
    assert found["long"].repeats.value == 1
    assert found["left"].repeats.value == pytest.approx(0.5, abs=0.25)


@pytest.mark.parametrize("seed", range(3))
def test_notes_name_habits_and_spare_the_good(seed: int) -> None:
    tasks, rows = planted(seed)
    notes = {name: " ".join(person.notes) for name, person in people(tasks, rows).items()}
    assert notes["ann"] == notes["bob"] == ""
    assert "shown first" in notes["left"]
    assert "before the text could be read" in notes["left"]
    assert "little more than by chance" in notes["left"]
    assert "known answer" in notes["left"]
    assert "longer response" in notes["long"]
    assert "shown first" not in notes["long"] + notes["eve"]
    assert "little more than by chance" in notes["eve"]


@pytest.mark.parametrize(("chosen", "side"), [(1, "first"), (2, "last")])
def test_a_habit_is_told_with_its_numbers(chosen: int, side: str) -> None:
    tasks = [task(n, "x", "y") for n in range(1, 41)]
    rows = [said(n, n, "ann", chosen if n > 2 else 3 - chosen) for n in range(1, 41)]
    assert people(tasks, rows)["ann"].notes == (f"Chose what was shown {side} 38 of 40 times.",)


def test_few_judgements_make_no_notes() -> None:
    tasks = [task(n, "x", "y", gold=2) for n in range(1, 4)]
    rows = [said(n, n, "ann", 1, purpose="gold", active_ms=1) for n in range(1, 4)]
    assert people(tasks, rows)["ann"].notes == ()
    tasks = [task(n, "x", "y") for n in range(1, 41)]
    rows = [said(100 * len(who) + n, n, who, 1) for who in ("ann", "bobby", "cecilia") for n in range(1, 41)]
    rows += [said(900 + n, n, "d", 2) for n in range(1, 5)]
    found = people(tasks, rows)["d"]
    assert found.reliability is not None
    assert found.reliability.high < found.reliability.chance + GUESSING_BAR, "four judgements are no ground"
    assert found.notes == ()


def test_most_judgements_first() -> None:
    tasks = [task(n, "x", "y") for n in (1, 2)]
    rows = [said(1, 1, "bob", 1), said(2, 1, "ann", 1), said(3, 2, "cem", 1), said(4, 1, "cem", 2)]
    assert list(people(tasks, rows)) == ["cem", "ann", "bob"]
