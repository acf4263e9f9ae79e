from __future__ import annotations

import json
import math
from typing import Any

import pytest

from annotation_ui.protocol import DraftIn, JudgementIn, UndoIn
from annotation_ui.session import HOLD, LARGEST_DRAFT, Judging, parse, to_json
from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Attribute, Form, Gold, NewResponse, NewTask


@pytest.fixture
def judging(store: JudgementStore, round_id: int) -> Judging:
    return Judging(store, round_id)


LEFT = {"choice": "response", "place": 0}


def answer(task: dict[str, Any], client_token: str = "token-0001", **said: Any) -> JudgementIn:
    whole = {"assignment": task["assignment"], "client_token": client_token, **(said or LEFT)}
    given: JudgementIn = parse(JudgementIn, whole)
    return given


def test_tasks_say_nothing_about_where_responses_come_from(judging: Judging, store: JudgementStore) -> None:
    given = judging.next(store.user("ann"))
    assert len(given["tasks"]) == HOLD
    assert set(given["tasks"][0]) == {"assignment", "prompt", "responses", "form", "practice", "draft"}
    assert set(given["tasks"][0]["responses"][0]) == {"html", "text", "cut"}
    assert b"secret" not in to_json(given)


def test_the_numbers_on_the_screen_do_not_tell_known_answers_from_others(store: JudgementStore) -> None:
    """Both go up by one with every answer, whatever the task was for."""
    terms = {"overlap": 1, "seed": 3, "source_digest": "g", "lease_seconds": 60, "gold_rate": 0.5}
    round_id = store.open_round("gold", **terms)
    pairs = [(NewResponse(f"a{i}"), NewResponse(f"b{i}")) for i in range(40)]
    store.add_tasks(round_id, [NewTask(Prompt((Message("user", f"q{i}"),)), pair) for i, pair in enumerate(pairs)])
    for task in store.tasks(round_id)[:15]:
        store.set_gold(task.id, Gold("response", task.responses[0].id), None)
    judging, ann = Judging(store, round_id), store.user("ann")
    tasks = judging.next(ann)["tasks"]
    for number in range(1, 13):
        given = judging.submit(ann, answer(tasks[0], f"token-{number:04d}"))
        tasks = given["tasks"]
        assert (given["progress"]["mine"], given["progress"]["done"]) == (number, number)
    purposes = {row.purpose for row in store.judgements(round_id)}
    assert purposes == {"judge", "gold"}


def test_a_response_that_was_cut_off_says_so(store: JudgementStore) -> None:
    round_id = store.open_round("cut", overlap=1, seed=0, source_digest="cut", lease_seconds=60)
    responses = (NewResponse("whole.", "eos"), NewResponse("torn in the", "length"), NewResponse("unknown", None))
    store.add_tasks(round_id, [NewTask(Prompt((Message("user", "q"),)), responses)])
    [task] = Judging(store, round_id).next(store.user("ann"))["tasks"]
    assert {r["text"]: r["cut"] for r in task["responses"]} == {"whole.": False, "torn in the": True, "unknown": False}


@pytest.mark.parametrize("place", [0, 1])
def test_a_place_is_kept_as_the_response_that_stood_there(
    judging: Judging, store: JudgementStore, round_id: int, place: int
) -> None:
    ann = store.user("ann")
    task = judging.next(ann)["tasks"][0]
    times = {"shown_at": 1000, "decided_at": 3000, "active_ms": 1500, "wall_ms": 2000.4}
    done = judging.submit(ann, answer(task, choice="response", place=place, **times))
    [row] = store.judgements(round_id)
    texts = {r.id: r.text for t in store.tasks(round_id) for r in t.responses}
    assert row.response_id is not None
    assert texts[row.response_id] == task["responses"][place]["text"]
    assert (row.active_ms, row.wall_ms) == (1500, 2000)
    other = judging.next(ann)["tasks"][0]
    judging.submit(ann, answer(other, "token-of-a-wrong-clock", **LEFT, wall_ms=2**52, active_ms=2**52))
    assert store.judgements(round_id)[-1].active_ms == store.judgements(round_id)[-1].wall_ms == 24 * 3600 * 1000
    assert (done["known"], done["late"], len(done["tasks"])) == (False, False, HOLD)
    assert task["assignment"] not in {t["assignment"] for t in done["tasks"]}


def test_ones_own_judgement_counts_at_once(judging: Judging, store: JudgementStore) -> None:
    ann, bob = store.user("ann"), store.user("bob")
    assert judging.progress(ann)["done"] == 0
    task = judging.next(ann)["tasks"][0]
    for _ in range(2):  # the same judgement sent twice counts once
        after = judging.submit(ann, answer(task))["progress"]
        assert (after["mine"], after["done"], after["wanted"]) == (1, 1, 10)
    after = judging.submit(bob, answer(judging.next(bob)["tasks"][0], "token-0002", choice="skip"))["progress"]
    assert (after["mine"], after["done"]) == (1, 2)
    after = judging.undo(bob, UndoIn(client_token="undo-0001"))["progress"]
    assert (after["mine"], after["done"]) == (0, 1)
    after = judging.submit(ann, answer(task, "token-0003", choice="tie"))["progress"]  # a revision
    assert (after["mine"], after["done"]) == (1, 1)
    again = judging.next(bob)["tasks"][0]
    after = judging.submit(bob, answer(again, "token-0004"))["progress"]  # what was taken back is done now
    assert (after["mine"], after["done"]) == (1, 2)


def test_undo_gives_the_task_back(judging: Judging, store: JudgementStore, round_id: int) -> None:
    ann = store.user("ann")
    task = judging.next(ann)["tasks"][0]
    judging.submit(ann, answer(task))
    undone = judging.undo(ann, UndoIn(client_token="undo-0001", of="token-0001"))
    assert undone["task"] == task
    assert store.judgements(round_id) == []
    assert judging.undo(ann, UndoIn(client_token="undo-0002"))["task"] is None


EVERYTHING = Form(
    kind="ranking",
    all_bad=True,
    rules=("no lies", "no insults"),
    attributes=(Attribute("helpful", points=7),),
    correction=True,
    comment=True,
    flags=("private",),
)


def everything(store: JudgementStore) -> Judging:
    made = store.open_round("all", overlap=1, seed=3, source_digest="d", lease_seconds=60, form=EVERYTHING)
    responses = tuple(NewResponse(text) for text in ("one", "two", "three"))
    store.add_tasks(made, [NewTask(Prompt((Message("user", "?"),)), responses)])
    return Judging(store, made)


def test_every_part_of_an_answer_goes_in_by_place_and_comes_back_by_place(store: JudgementStore) -> None:
    judging, ann = everything(store), store.user("ann")
    task = judging.next(ann)["tasks"][0]
    said = {
        "choice": "ranking",
        "ranking": [[2], [0, 1]],
        "rules": [["no lies"], [], ["no insults", "no lies"]],
        "ratings": [{"helpful": 1}, {"helpful": 2}, {"helpful": 7}],
        "flags": ["private"],
        "comment": "why",
        "correction": {"place": 1, "text": "better"},
    }
    judging.submit(ann, answer(task, **said))
    [row] = store.judgements(judging.round_id)
    texts = {r.id: r.text for t in store.tasks(judging.round_id) for r in t.responses}
    shown = [r["text"] for r in task["responses"]]
    assert row.ranking is not None
    assert [[texts[id_] for id_ in group] for group in row.ranking] == [[shown[2]], [shown[0], shown[1]]]
    assert {texts[id_]: set(broken) for id_, broken in row.rules.items()} == {
        shown[0]: {"no lies"},
        shown[1]: set(),
        shown[2]: {"no lies", "no insults"},
    }
    assert texts[row.corrected_id or 0] == shown[1]
    [past] = judging.history(ann)
    assert {
        name: past["answer"][name] for name in ("choice", "ranking", "ratings", "flags", "comment", "correction")
    } == {name: said[name] for name in ("choice", "ranking", "ratings", "flags", "comment", "correction")}
    assert [set(broken) for broken in past["answer"]["rules"]] == [set(broken) for broken in said["rules"]]
    assert past["task"]["assignment"] == task["assignment"]
    assert past["editable"]


@pytest.mark.parametrize(
    "said",
    [
        {"choice": "ranking", "ranking": [[0], [1]]},
        {"choice": "ranking", "ranking": [[0], [1], [3]]},
        {"choice": "ranking", "ranking": [[0], [1], [2]], "rules": [[], []]},
        {"choice": "ranking", "ranking": [[0], [1], [2]], "rules": [[], [], ["no rule"]]},
        {"choice": "response", "place": 0},
        {"choice": "skip", "correction": {"place": 8, "text": "x"}},
        {"choice": "skip", "flags": ["public"]},
    ],
)
def test_answers_that_do_not_fit_the_form(store: JudgementStore, said: dict[str, Any]) -> None:
    judging, ann = everything(store), store.user("ann")
    task = judging.next(ann)["tasks"][0]
    with pytest.raises(AnswerRefused):
        judging.submit(ann, answer(task, **said))
    assert store.judgements(judging.round_id) == []


def test_drafts_come_back_with_the_task_and_go_with_the_answer(judging: Judging, store: JudgementStore) -> None:
    ann, bob = store.user("ann"), store.user("bob")
    task = judging.next(ann)["tasks"][0]
    judging.save_draft(ann, DraftIn(assignment=task["assignment"], draft={"at": 1, "content": {"comment": "\u200b"}}))
    assert judging.next(ann)["tasks"][0]["draft"] == {"at": 1, "content": {"comment": "\u200b"}}
    with pytest.raises(AnswerRefused, match="not yours"):
        judging.save_draft(bob, DraftIn(assignment=task["assignment"], draft={}))
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for unreadable in (math.nan, [math.inf], deep):
        with pytest.raises(AnswerRefused, match="draft: "):
            parse(DraftIn, {"assignment": task["assignment"], "draft": {"a": unreadable}})
    with pytest.raises(AnswerRefused, match="too large"):
        judging.save_draft(ann, DraftIn(assignment=task["assignment"], draft={"x": "y" * LARGEST_DRAFT}))
    judging.submit(ann, answer(task))
    assert judging.history(ann)[0]["task"]["draft"] is None


def test_leases_are_renewed_and_released(judging: Judging, store: JudgementStore) -> None:
    ann, bob = store.user("ann"), store.user("bob")
    held = [task["assignment"] for task in judging.next(ann)["tasks"]]
    assert judging.renew(ann, held) == HOLD
    assert judging.renew(bob, held) == 0
    assert judging.release(bob, held) == 0
    assert judging.release(ann, held[1:]) == HOLD - 1
    assert judging.renew(ann, held) == 1


def test_history_is_ones_own_and_comes_in_pages(judging: Judging, store: JudgementStore) -> None:
    ann, bob = store.user("ann"), store.user("bob")
    for number in range(5):
        judging.submit(ann, answer(judging.next(ann)["tasks"][0], f"token-ann-{number}"))
    judging.submit(bob, answer(judging.next(bob)["tasks"][0], "token-bob-0"))
    first = judging.history(ann, limit=3)
    then = judging.history(ann, limit=3, before=first[-1]["judgement"])
    ids = [one["judgement"] for one in first + then]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 5
    assert b"secret" not in to_json(first)


def test_gold_tells_what_was_right_only_where_the_round_says_so(store: JudgementStore) -> None:
    for feedback in (True, False):
        made = store.open_round(
            f"gold {feedback}",
            overlap=1,
            seed=1,
            source_digest="d",
            lease_seconds=60,
            gold_rate=1.0,
            gold_feedback=feedback,
        )
        prompts = (Prompt((Message("user", f"{number}"),)) for number in range(2))
        store.add_tasks(made, [NewTask(p, (NewResponse("good"), NewResponse("bad"))) for p in prompts])
        known, _ = store.tasks(made)
        [good] = [r.id for r in known.responses if r.text == "good"]
        store.set_gold(known.id, Gold("response", good, "It is **good**."))
        judging, ann = Judging(store, made), store.user("ann")
        tasks = judging.next(ann)["tasks"]
        [task] = [t for t in tasks if t["prompt"][0]["text"] == "0"]
        assert {key: type(value) for key, value in task.items()} == {k: type(v) for k, v in tasks[-1].items()}
        bad = [r["text"] for r in task["responses"]].index("bad")
        told = judging.submit(ann, answer(task, f"token-{feedback}", choice="response", place=bad))["feedback"]
        if feedback:
            assert (told["right"], told["expected"]["place"]) == (False, 1 - bad)
            assert "<strong>good</strong>" in told["html"]
        else:
            assert told is None


def test_guidelines_are_the_newest_and_their_version_is_told(judging: Judging, store: JudgementStore) -> None:
    ann = store.user("ann")
    before = judging.guidelines()
    assert judging.progress(ann)["guidelines"] == before["version"]
    store.set_guidelines(judging.round_id, "Choose <b>worse</b>.")
    after = judging.guidelines()
    assert after["version"] != before["version"]
    assert "&lt;b&gt;worse" in after["html"]
    judging._state = None
    assert judging.progress(ann)["guidelines"] == after["version"]


@pytest.mark.parametrize(
    "change",
    [
        {"choice": "both"},
        {"choice": None},
        {"choice": ["tie"]},
        {"place": None},
        {"place": 2},
        {"place": -1},
        {"place": "0"},
        {"choice": "tie"},
        {"strength": 2},
        {"extra": 1},
        {"comment": "lone \ud800 surrogate"},
        {"client_token": "short"},
        {"client_token": "x" * 101},
        {"client_token": 12345678},
        {"client_token": "nul\x00nul\x00"},
        {"assignment": "1"},
        {"assignment": True},
        {"assignment": 10**30},
        {"assignment": -1},
        {"assignment": float("nan")},
        {"shown_at": "now"},
        {"active_ms": -5},
        {"wall_ms": float("inf")},
    ],
)
def test_payloads_that_are_no_answer(
    judging: Judging, store: JudgementStore, round_id: int, change: dict[str, Any]
) -> None:
    ann = store.user("ann")
    task = judging.next(ann)["tasks"][0]
    whole = {"assignment": task["assignment"], "client_token": "token-0001", **LEFT, **change}
    with pytest.raises(AnswerRefused):
        judging.submit(ann, parse(JudgementIn, whole))
    assert store.judgements(round_id) == []


def test_another_persons_task_is_refused(judging: Judging, store: JudgementStore) -> None:
    task = judging.next(store.user("ann"))["tasks"][0]
    with pytest.raises(AnswerRefused, match="not yours"):
        judging.submit(store.user("bob"), answer(task))


def test_any_text_can_be_sent(judging: Judging, store: JudgementStore, round_id: int) -> None:
    prompt = Prompt((Message("user", "\ud800 \x00 سلام"),))
    store.add_tasks(round_id, [NewTask(prompt, (NewResponse("\udfff"), NewResponse("")), priority=1.0)])
    sent = json.loads(to_json(judging.next(store.user("ann"))))
    assert sent["tasks"][0]["prompt"][0]["text"] == "⟦U+D800⟧ ⟦U+0000⟧ سلام"
