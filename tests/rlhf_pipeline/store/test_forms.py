from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.forms import check_answer, is_right
from rlhf_pipeline.store.records import Answer, Attribute, Form, Gold, NewResponse, NewTask

A, B, C = 11, 12, 13
PAIR, THREE = (A, B), (A, B, C)
RULES = Form(rules=("rude", "false"))
RATED = Form(attributes=(Attribute("kind", "cold", "warm"), Attribute("long", points=3)))


def chosen(**given: Any) -> Answer:
    return Answer("token-12", 1, "response", A, **given)


def ranked(*groups: tuple[int, ...]) -> Answer:
    return Answer("token-12", 1, "ranking", ranking=groups)


FITS: list[tuple[Form, Answer, tuple[int, ...]]] = [
    (Form(), chosen(), PAIR),
    (Form(), Answer("t", 1, "tie"), PAIR),
    (Form(tie=False), Answer("t", 1, "skip"), PAIR),
    (Form(all_bad=True), Answer("t", 1, "all_bad"), PAIR),
    (Form(strength=True), chosen(strength=3), PAIR),
    (Form(strength=True), Answer("t", 1, "tie"), PAIR),
    (Form(kind="ranking"), ranked((B,), (A, C)), THREE),
    (Form(kind="ranking", tie=False), ranked((B,), (A,), (C,)), THREE),
    (RULES, chosen(rules={A: (), B: ("rude", "false")}), PAIR),
    (RULES, Answer("t", 1, "skip"), PAIR),
    (RATED, chosen(ratings={A: {"kind": 5, "long": 3}, B: {"kind": 1, "long": 1}}), PAIR),
    (Form(flags=("private",)), Answer("t", 1, "skip", flags=("private",)), PAIR),
    (Form(comment=True), chosen(comment="both are long"), PAIR),
    (Form(correction=True), chosen(corrected_id=B, correction="better"), PAIR),
    (Form(correction=True), chosen(), PAIR),
]


@pytest.mark.parametrize(("form", "answer", "responses"), FITS)
def test_answers_that_fit_their_form(form: Form, answer: Answer, responses: tuple[int, ...]) -> None:
    check_answer(form, answer, responses)


REFUSED: list[tuple[Form, Answer, tuple[int, ...], str]] = [
    (Form(tie=False), Answer("t", 1, "tie"), PAIR, "'tie' is no answer here; wanted: response, skip"),
    (Form(), Answer("t", 1, "all_bad"), PAIR, "wanted: response, skip, tie"),
    (Form(), ranked((A,), (B,)), PAIR, "'ranking' is no answer"),
    (Form(kind="ranking"), chosen(), PAIR, "wanted: ranking, skip"),
    (Form(), replace(chosen(), response_id=99), PAIR, "response 99 is not one"),
    (Form(), replace(chosen(), ranking=((A,), (B,))), PAIR, "has no ranking"),
    (Form(kind="ranking"), Answer("t", 1, "ranking"), PAIR, "the ranking is missing"),
    (Form(kind="ranking"), ranked((A,), (B,)), THREE, "every response of the task exactly once"),
    (Form(kind="ranking"), ranked((A,), (B, A), (C,)), THREE, "exactly once"),
    (Form(kind="ranking"), ranked((A, B, C), ()), THREE, "exactly once"),
    (Form(kind="ranking", tie=False), ranked((A, B), (C,)), THREE, "without ties"),
    (Form(strength=True), chosen(), PAIR, "how much better is missing: 1 slightly better, 2 better, 3 much better"),
    (Form(strength=True), chosen(strength=4), PAIR, "how much better is missing"),
    (Form(strength=True), Answer("t", 1, "tie", strength=1), PAIR, "was not asked"),
    (Form(), chosen(strength=1), PAIR, "was not asked"),
    (RULES, chosen(), PAIR, "of 2 of 2 responses is missing: which rules"),
    (RULES, chosen(rules={A: ()}), PAIR, "of 1 of 2 responses is missing"),
    (RULES, chosen(rules={A: (), B: ("dull",)}), PAIR, "no rule 'dull'"),
    (RULES, chosen(rules={A: (), B: ("rude", "rude")}), PAIR, "named twice"),
    (RULES, chosen(rules={A: (), B: (), C: ()}), PAIR, f"response {C} is not one"),
    (Form(), chosen(rules={A: (), B: ()}), PAIR, "not asked"),
    (RATED, chosen(ratings={A: {"kind": 5, "long": 3}, B: {"kind": 5}}), PAIR, "a rating is missing: long"),
    (
        RATED,
        chosen(ratings={A: {"kind": 5, "long": 4}, B: {"kind": 5, "long": 1}}),
        PAIR,
        "long is rated 4; wanted: 1 to 3",
    ),
    (RATED, chosen(ratings={A: {"kind": 0, "long": 3}, B: {"kind": 5, "long": 1}}), PAIR, "kind is rated 0"),
    (RATED, chosen(ratings={A: {"kind": True, "long": 3}, B: {"kind": 5, "long": 1}}), PAIR, "kind is rated True"),
    (RATED, chosen(ratings={A: {"kind": 1, "long": 3, "x": 1}, B: {"kind": 5, "long": 1}}), PAIR, "no attribute x"),
    (Form(flags=("private",)), chosen(flags=("boring",)), PAIR, "no flag 'boring'; there are: private"),
    (Form(), chosen(comment="well"), PAIR, "comment was not asked"),
    (Form(comment=True), chosen(comment="x" * 10_001), PAIR, "10,001 characters, at most 10,000"),
    (Form(), chosen(corrected_id=A, correction="x"), PAIR, "correction was not asked"),
    (Form(correction=True), chosen(correction="x"), PAIR, "the response that it corrects"),
    (Form(correction=True), chosen(corrected_id=A), PAIR, "needs its text"),
    (Form(correction=True), chosen(corrected_id=99, correction="x"), PAIR, "response 99 is not one"),
    (Form(correction=True), chosen(corrected_id=A, correction=" \n"), PAIR, "is empty"),
    (Form(correction=True), chosen(corrected_id=A, correction="x\ud83d"), PAIR, "half of a character"),
]


@pytest.mark.parametrize(("form", "answer", "responses", "said"), REFUSED)
def test_answers_that_do_not_fit_are_refused_with_what_is_missing(
    form: Form, answer: Answer, responses: tuple[int, ...], said: str
) -> None:
    with pytest.raises(AnswerRefused, match=said):
        check_answer(form, answer, responses)


def test_the_version_of_a_form_changes_with_anything_that_is_asked() -> None:
    forms = [Form(), Form(tie=False), Form(rules=("a", "b")), Form(rules=("b", "a")), Form(flags=("a", "b")), RATED]
    assert len({form.digest for form in forms}) == len(forms)
    assert all(Form.from_json(form.to_json()) == form for form in forms)
    assert Form().digest == "177357550e4d97c2", "judgements of version 1 were made under this form"


def test_an_answer_is_right_where_it_is_the_known_one() -> None:
    gold = Gold("response", A)
    assert is_right(gold, chosen())
    assert not is_right(gold, replace(chosen(), response_id=B))
    assert not is_right(gold, Answer("t", 1, "tie"))
    assert is_right(Gold("tie"), Answer("t", 1, "tie"))
    assert is_right(gold, ranked((A,), (B, C)))
    assert not is_right(gold, ranked((A, B), (C,)))


# In the store


@pytest.fixture
def store(location: str) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(location)
    yield opened
    opened.close()


def opened(store: JudgementStore, form: Form, *texts: str) -> int:
    round_id = store.open_round("people", overlap=1, seed=7, source_digest="d", lease_seconds=60, form=form)
    store.add_tasks(round_id, [NewTask(Prompt((Message("user", "why?"),)), tuple(NewResponse(t) for t in texts))])
    return round_id


def test_everything_that_a_form_asks_comes_back_as_it_was_given(store: JudgementStore) -> None:
    form = Form(
        strength=True, rules=("rude",), attributes=(Attribute("kind"),), correction=True, comment=True, flags=("x\x00",)
    )
    round_id, ann = opened(store, form, "yes", "no"), store.user("ann")
    [held] = store.lease(round_id, ann, 1)
    assert held.form == form
    first, second = (r.id for r in held.responses)
    given = Answer(
        "token-1",
        held.id,
        "response",
        second,
        strength=2,
        rules={first: ("rude",), second: ()},
        ratings={first: {"kind": 1}, second: {"kind": 5}},
        flags=("x\x00",),
        comment="NUL \x00 and \ud800 and سلام",
        corrected_id=first,
        correction="nay\x00",
        shown_at=5,
        decided_at=9,
        active_ms=3,
        wall_ms=4,
        keys_used=True,
    )
    store.submit(ann, given)
    [row] = store.judgements(round_id)
    for name in ("choice", "response_id", "strength", "ranking", "rules", "ratings", "flags", "comment"):
        assert getattr(row, name) == getattr(given, name), name
    for name in ("corrected_id", "correction", "shown_at", "decided_at", "active_ms", "wall_ms", "keys_used"):
        assert getattr(row, name) == getattr(given, name), name
    assert (row.margin, row.purpose, row.client_token) == (2.0, "judge", "token-1")
    assert (row.shown_order, row.left_id) == ((first, second), first)
    assert row.form_digest == form.digest


def test_a_ranking_is_kept_with_its_ties(store: JudgementStore) -> None:
    round_id, ann = opened(store, Form(kind="ranking"), "a", "b", "c", "d"), store.user("ann")
    [held] = store.lease(round_id, ann, 1)
    a, b, c, d = (r.id for r in held.responses)
    store.submit(ann, Answer("t", held.id, "ranking", ranking=((c,), (a, d), (b,))))
    [row] = store.judgements(round_id)
    assert (row.choice, row.ranking, row.shown_order) == ("ranking", ((c,), (a, d), (b,)), (a, b, c, d))
    assert store.progress(round_id).remaining == 0


def test_what_the_form_refuses_is_not_stored(store: JudgementStore) -> None:
    round_id, ann = opened(store, Form(strength=True, correction=True), "yes", "no"), store.user("ann")
    [held] = store.lease(round_id, ann, 1)
    first = held.responses[0]
    with pytest.raises(AnswerRefused, match="how much better"):
        store.submit(ann, Answer("t", held.id, "response", first.id))
    with pytest.raises(AnswerRefused, match="is what it was"):
        store.submit(
            ann, Answer("t", held.id, "response", first.id, strength=1, corrected_id=first.id, correction=first.text)
        )
    assert store.judgements(round_id, all_revisions=True) == []


def test_an_answer_is_held_against_the_form_under_which_the_task_was_given(store: JudgementStore) -> None:
    round_id, ann, bob = opened(store, Form(), "yes", "no"), store.user("ann"), store.user("bob")
    [held] = store.lease(round_id, ann, 1, now=0)
    assert opened(store, Form(strength=True), "yes", "no") == round_id
    store.submit(ann, Answer("t", held.id, "response", held.responses[0].id), now=1)
    store.undo(round_id, ann, "u", now=2)
    [again] = store.lease(round_id, bob, 1, now=100_000)
    assert again.form.strength
    with pytest.raises(AnswerRefused, match="how much better"):
        store.submit(bob, Answer("t2", again.id, "response", held.responses[0].id), now=100_001)
    assert [r.form for r in store.rounds()] == [Form(strength=True)]
