"""The admin pages' logic: who may do what, what they get, and that a decision is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from annotation_ui.desk import MAY, Desk, right_of
from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store import JudgementStore
from tests.annotation_ui.planted_store import PEOPLE


@pytest.fixture
def desk(planted: tuple[JudgementStore, int]) -> Desk:
    return Desk(planted[0])


@pytest.fixture
def ids(planted: tuple[JudgementStore, int]) -> dict[str, int]:
    """One person of each role."""
    people = planted[0].people
    return {role: people.add(f"the {role}", role) for role in ("admin", "reader", "annotator", "simulated")}


READS: dict[str, Callable[[Desk, int, int], object]] = {
    "rounds": lambda desk, who, _: desk.rounds(who),
    "look": lambda desk, who, at: desk.look(who, at),
    "listed": lambda desk, who, at: desk.listed(who, at, "all"),
    "task": lambda desk, who, at: desk.task(who, at, 1),
}
LEADS: dict[str, Callable[[Desk, int, int], object]] = {
    "decide": lambda desk, who, at: desk.decide(who, at, 1, "tie"),
    "set_known_answer": lambda desk, who, at: desk.set_known_answer(who, at, 1, "response", 0),
    "people": lambda desk, who, _: desk.people(who),
    "invite": lambda desk, who, _: desk.invite(who, "annotator", 7),
    "change": lambda desk, who, _: desk.change(who, desk.store.user("Ann"), "block"),
    "events": lambda desk, who, _: desk.events(who),
}


@pytest.mark.parametrize("what", [*READS, *LEADS])
@pytest.mark.parametrize("role", ["admin", "reader", "annotator", "simulated", "nobody"])
def test_every_method_asks_who_may(
    desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int], role: str, what: str
) -> None:
    who = ids.get(role, 10_000)
    allowed = ("read" if what in READS else "lead") in MAY.get(role, ())
    act = {**READS, **LEADS}[what]
    if allowed:
        act(desk, who, planted[1])
        return
    before = desk.store.events(limit=1)
    with pytest.raises(StoreError):
        act(desk, who, planted[1])
    assert desk.store.events(limit=1) == before, "nothing was changed"


def test_a_blocked_admin_may_nothing(desk: Desk, ids: dict[str, int]) -> None:
    other = desk.store.people.add("other", "admin")
    desk.change(other, ids["admin"], "block")
    with pytest.raises(StoreError, match="nobody is signed in"):
        desk.rounds(ids["admin"])


def test_a_report_has_what_was_judged(desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int]) -> None:
    seen = desk.look(ids["reader"], planted[1])
    assert {a.user for a in seen.report.annotators} == set(PEOPLE)
    assert seen.report.progress.judgements == sum(a.judgements for a in seen.report.annotators)
    assert seen.terms.id == planted[1]


def test_a_report_is_kept_for_a_moment(desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int]) -> None:
    first = desk.look(ids["admin"], planted[1])
    assert desk.look(ids["reader"], planted[1]) is first
    assert desk.look(ids["admin"], planted[1], fresh=True) is not first


def test_a_decision_decides_and_is_seen_at_once(
    desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int]
) -> None:
    open_ = desk.listed(ids["admin"], planted[1], "disagree")
    task = open_[0]
    desk.decide(ids["admin"], planted[1], task.id, "response", 1, "  it is right  ")
    assert task.id not in [t.id for t in desk.listed(ids["admin"], planted[1], "disagree")]
    assert [t.id for t in desk.listed(ids["admin"], planted[1], "decided")] == [task.id]
    _, rows = desk.task(ids["admin"], planted[1], task.id)
    [decision] = [row for row in rows if row.purpose == "adjudicate"]
    assert (decision.response_id, decision.comment) == (task.responses[1].id, "it is right")
    assert len(rows) > 1, "what others judged stays"


def test_known_answers_are_set_and_forgotten(
    desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int]
) -> None:
    task = desk.listed(ids["admin"], planted[1], "disagree")[0]
    desk.set_known_answer(ids["admin"], planted[1], task.id, "response", 0, "because")
    [now] = [t for t in desk.listed(ids["admin"], planted[1], "known") if t.id == task.id]
    assert now.gold is not None
    assert (now.gold.response_id, now.gold.explanation) == (task.responses[0].id, "because")
    desk.set_known_answer(ids["admin"], planted[1], task.id, None)
    assert task.id not in [t.id for t in desk.listed(ids["admin"], planted[1], "known")]


def test_lists_are_what_they_say(desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int]) -> None:
    store, at = planted
    assert len(desk.listed(ids["reader"], at, "all")) == 30
    assert all(t.gold for t in desk.listed(ids["reader"], at, "known"))
    assert len(desk.listed(ids["reader"], at, "known")) == 5
    remarked = {r.task_id for r in store.judgements(at) if r.comment or r.flags}
    assert {t.id for t in desk.listed(ids["reader"], at, "flagged")} == remarked
    report = desk.look(ids["reader"], at).report
    assert [t.id for t in desk.listed(ids["reader"], at, "disagree")] == [d.task_id for d in report.disagreements]


@pytest.mark.parametrize(("place", "task"), [(2, 1), (-1, 1), (0, 999)])
def test_what_is_not_there_cannot_be_decided(
    desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int], place: int, task: int
) -> None:
    with pytest.raises(StoreError):
        desk.decide(ids["admin"], planted[1], task, "response", place)


def test_known_answers_that_most_people_miss_come_first(
    desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int]
) -> None:
    found = desk.listed(ids["reader"], planted[1], "known")
    shares = [right_of(task, desk.task(ids["reader"], planted[1], task.id)[1]) for task in found]
    asked = [share.value for share in shares if share.value is not None]
    assert asked == sorted(asked)
    assert len(set(asked)) > 1
    answered = [r for r in planted[0].judgements(planted[1]) if r.purpose == "gold"]
    assert sum(share.n for share in shares) == len(answered)


def test_a_task_of_another_round_is_not_shown(
    desk: Desk, planted: tuple[JudgementStore, int], ids: dict[str, int]
) -> None:
    other = planted[0].open_round("other", overlap=1, seed=0, source_digest="e", lease_seconds=60)
    with pytest.raises(StoreError, match="has no task 1"):
        desk.task(ids["admin"], other, 1)
    assert [r.id for r in desk.rounds(ids["admin"])] == [other, planted[1]], "the newest first"


def test_an_invitation_makes_an_account_once(desk: Desk, ids: dict[str, int]) -> None:
    path = desk.invite(ids["admin"], "reader", 3)
    token = path.removeprefix("/invite/")
    made = desk.store.people.accept_invite(token, "Rea Der", "a long enough password")
    assert made.role == "reader"
    with pytest.raises(StoreError, match="1 to 90 days"):
        desk.invite(ids["admin"], "reader", 0)


@pytest.mark.parametrize(
    ("what", "said"),
    [("reader", "Ann is reader now."), ("block", "Ann is blocked."), ("sign out", "Ann is signed out (1 session).")],
)
def test_people_are_changed(desk: Desk, ids: dict[str, int], what: str, said: str) -> None:
    ann = desk.store.user("Ann")
    token = desk.store.people.start_session(ann)
    assert desk.change(ids["admin"], ann, what) == said
    assert desk.store.people.of_session(token) is None, "they have to sign in again"
    assert desk.events(ids["admin"])[0].user_id == ids["admin"]


def test_a_blocked_person_comes_back(desk: Desk, ids: dict[str, int]) -> None:
    ann = desk.store.user("Ann")
    desk.change(ids["admin"], ann, "block")
    assert desk.change(ids["admin"], ann, "unblock") == "Ann may sign in again."
    [person] = [p for p in desk.people(ids["admin"]) if p.id == ann]
    assert person.state == "active"


@pytest.mark.parametrize(("person", "what"), [("ann", "emperor"), ("nobody", "block"), ("admin", "block")])
def test_what_cannot_be_changed(desk: Desk, ids: dict[str, int], person: str, what: str) -> None:
    who = {"ann": desk.store.user("Ann"), "nobody": 10_000, "admin": ids["admin"]}[person]
    with pytest.raises(StoreError):
        desk.change(ids["admin"], who, what)


def test_without_accounts_whoever_is_there_may_read_and_lead(
    planted: tuple[JudgementStore, int], ids: dict[str, int]
) -> None:
    accounts = False
    desk = Desk(planted[0], accounts=lambda: accounts)
    assert desk.leads(ids["annotator"])
    assert desk.look(ids["annotator"], planted[1])
    assert desk.invite(ids["annotator"], "admin", 1)
    with pytest.raises(StoreError, match="nobody is signed in"):
        desk.look(ids["simulated"], planted[1])
    with pytest.raises(StoreError, match="may not decide"):
        desk.decide(ids["annotator"], planted[1], 1, "tie")
    accounts = True  # the first account is made while the app runs
    for who in ("annotator", "reader"):
        with pytest.raises(StoreError, match="this takes an admin"):
            desk.invite(ids[who], "admin", 1)
    assert not desk.leads(ids["reader"])
