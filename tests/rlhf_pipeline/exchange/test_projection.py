"""Judgements to pairs and labels: worked by hand, and equal to what training aggregates."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from rlhf_pipeline.aggregate import Counting, aggregate
from rlhf_pipeline.exchange import JudgedTask, Verdict
from rlhf_pipeline.exchange.projection import Pair, labelled_of, pairs_of
from rlhf_pipeline.exchange.rules import RULES, Ledger, Terms, is_plain
from rlhf_pipeline.store.records import JudgementRow, StoredResponse, TaskRow
from tests.rlhf_pipeline.exchange.judged_rounds import ANN, BOB, EVE, a_round, asked, chose, task


def v(by: str = ANN, choice: str = "response", response: int | None = 0, **rest: object) -> Verdict:
    return Verdict(by, choice, response if choice == "response" else None, **rest)  # type: ignore[arg-type]


def pairs(*tasks, **terms) -> tuple[list[tuple[str, str]], dict[str, int]]:  # type: ignore[no-untyped-def]
    """Better and worse texts, and what was removed by each rule that removed something."""
    ledger = Ledger()
    found = pairs_of(a_round(*tasks), ledger, Terms(**terms))
    return [(p.chosen, p.rejected) for p in found], removed(ledger)


def removed(ledger: Ledger) -> dict[str, int]:
    return {row["rule"]: row["removed"] for row in ledger.to_json() if row["removed"]}


def one(*verdicts: Verdict, **terms: object) -> Pair:
    [pair] = pairs_of(a_round(task(*verdicts)), Ledger(), Terms(**terms))  # type: ignore[arg-type]
    return pair


def test_the_majority_decides_and_its_share_is_the_probability() -> None:
    pair = one(v(margin=3.0), v(BOB, margin=1.0), v(EVE, response=1, margin=2.0))
    assert (pair.chosen, pair.rejected, pair.judgements) == ("good", "bad", 3)
    assert pair.probability == pytest.approx(2 / 3)
    assert pair.margin == 2.0  # of those who chose it: (3 + 1) / 2


def test_a_tie_and_none_is_good_are_half_a_vote_for_each() -> None:
    assert one(v(), v(BOB, "tie")).probability == 0.75
    assert one(v(), v(BOB, "all_bad")).probability == 0.75
    assert one(v(probability=0.9), v(BOB, probability=0.7)).probability == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("verdicts", "rule"),
    [
        ([v(choice="tie")], "tie"),
        ([v(choice="tie"), v(BOB, "tie")], "tie"),
        ([v(choice="all_bad")], "all_bad"),
        ([v(), v(BOB, response=1)], "even"),
        ([v(choice="tie"), v(BOB, "all_bad")], "even"),
        ([v(probability=0.5)], "even"),
    ],
)
def test_what_is_even_is_left_out_and_counted_under_its_cause(verdicts: list[Verdict], rule: str) -> None:
    assert pairs(task(*verdicts)) == ([], {rule: 1})


@pytest.mark.parametrize("purpose", ["gold", "repeat", "training"])
def test_known_answers_repeats_and_training_do_not_count(purpose: str) -> None:
    assert pairs(task(v(), v(BOB, response=1, purpose=purpose))) == ([("good", "bad")], {"purpose": 1})


def test_revised_and_withdrawn_judgements_do_not_count() -> None:
    first, second = v(identity="1" * 32), v(response=1, identity="2" * 32, supersedes="1" * 32, revision=2)
    gone = Verdict(ANN, "withdrawn", identity="3" * 32, supersedes="2" * 32, revision=3)
    assert pairs(task(first, second)) == ([("bad", "good")], {"superseded": 1})
    assert pairs(task(first, second, gone)) == ([], {"superseded": 3})


def test_skips_do_not_count() -> None:
    assert pairs(task(v(), v(BOB, "skip"))) == ([("good", "bad")], {"skip": 1})


def test_an_admins_last_decision_stands_alone() -> None:
    decisions = [v(EVE, "tie", purpose="adjudicate"), v(EVE, response=1, purpose="adjudicate")]
    assert pairs(task(v(), v(BOB), *decisions)) == ([("bad", "good")], {"adjudicated": 3})
    skipped = v(EVE, "skip", purpose="adjudicate")
    assert pairs(task(v(), *decisions, skipped)) == ([], {"adjudicated": 3, "skip": 1})
    corrected = v(corrected=1, correction="fair")
    assert pairs(task(corrected, *decisions)) == ([("bad", "good"), ("fair", "bad")], {"adjudicated": 2})


def test_flagged_tasks_are_left_out_where_that_is_wanted() -> None:
    flagged = task(v(), v(BOB, flags=("personal data",)))
    assert pairs(flagged) == ([("good", "bad")], {})
    assert pairs(flagged, drop_flagged=True) == ([], {"flagged": 2})


def test_a_ranking_is_every_pair_that_it_orders() -> None:
    ranked = task(v(choice="ranking", ranking=((2,), (0, 1), (3,))), texts="abcd")
    found, gone = pairs(ranked)
    assert set(found) == {("c", "a"), ("c", "b"), ("c", "d"), ("a", "d"), ("b", "d")}
    assert gone == {"tie": 1}
    made = pairs_of(a_round(ranked, task(v())), Ledger(), Terms())
    assert [p.weight for p in made] == [0.2] * 5 + [1.0]


def test_weights_are_of_the_pairs_that_are_left() -> None:
    ranked = task(
        v(choice="ranking", ranking=((0,), (1,), (2,))), v(BOB, "ranking", ranking=((0,), (2,), (1,))), texts="abc"
    )
    made = pairs_of(a_round(ranked), Ledger(), Terms())
    assert sorted((p.chosen, p.rejected, p.weight) for p in made) == [("a", "b", 0.5), ("a", "c", 0.5)]


def test_rankings_of_several_judges_are_votes_on_each_pair() -> None:
    rankings = [((0,), (1,), (2,)), ((1,), (0,), (2,)), ((0,), (2,), (1,))]
    made = pairs_of(
        a_round(
            task(*(v(by, "ranking", ranking=r) for by, r in zip((ANN, BOB, EVE), rankings, strict=True)), texts="abc")
        ),
        Ledger(),
        Terms(),
    )
    shares = {(p.chosen, p.rejected): p.probability for p in made}
    assert shares == pytest.approx({("a", "b"): 2 / 3, ("a", "c"): 1.0, ("b", "c"): 2 / 3})


def test_the_same_pair_in_two_tasks_is_decided_once() -> None:
    abc = task(v(choice="ranking", ranking=((0,), (1,), (2,))), texts="abc")
    abd = task(v(BOB, "ranking", ranking=((1,), (0,), (2,))), texts="abd")
    found, gone = pairs(abc, abd)
    assert not {("a", "b"), ("b", "a")} & set(found)
    assert gone == {"even": 1}
    assert len(found) == 4


def test_a_correction_is_better_than_what_it_corrects() -> None:
    corrected = v(corrected=0, correction="best")
    made = pairs_of(a_round(task(corrected)), Ledger(), Terms())
    assert [(p.chosen, p.rejected, p.source, p.weight) for p in made] == [
        ("good", "bad", "judgement", 1.0),
        ("best", "good", "correction", 1.0),
    ]
    assert pairs(task(corrected), corrections=False) == ([("good", "bad")], {"corrections": 1})
    assert pairs(task(v(corrected=0, correction="good"))) == ([("good", "bad")], {"unchanged": 1})


def test_a_correction_that_is_another_response_votes_for_it() -> None:
    assert pairs(task(v(choice="tie", corrected=1, correction="good"))) == ([("good", "bad")], {})


def test_margins_and_probabilities_below_the_least_wanted_are_left_out() -> None:
    tasks = [
        task(v(margin=1.0), prompt=asked("1")),
        task(v(margin=2.0), prompt=asked("2")),
        task(v(), prompt=asked("3")),
        task(v(margin=3.0), v(BOB, "tie"), prompt=asked("4")),
    ]
    assert len(pairs(*tasks)[0]) == 4
    assert pairs(*tasks, min_margin=2.0) == ([("good", "bad")] * 2, {"min_margin": 1, "no_margin": 1})
    assert pairs(*tasks, min_probability=0.8) == ([("good", "bad")] * 3, {"min_probability": 1})
    assert pairs(*tasks, min_probability=0.75)[1] == {}


def labels(*verdicts: Verdict, texts: str = "ab", **terms: object) -> tuple[dict[str, bool], dict[str, int]]:
    ledger = Ledger()
    found = labelled_of(a_round(task(*verdicts, texts=texts)), ledger, Terms(**terms))  # type: ignore[arg-type]
    return {row.response: row.good for row in found}, removed(ledger)


@pytest.mark.parametrize(
    ("verdict", "good"),
    [
        (v(), {"a": True, "b": False}),
        (v(response=1), {"a": False, "b": True}),
        (v(choice="tie"), {"a": True, "b": True}),
        (v(choice="all_bad"), {"a": False, "b": False}),
        (v(choice="ranking", ranking=((1,), (0,))), {"a": False, "b": True}),
        (v(choice="ranking", ranking=((0, 1),)), {"a": True, "b": True}),
        (v(corrected=1, correction="c"), {"a": True, "b": False, "c": True}),
    ],
)
def test_single_responses_are_good_or_bad(verdict: Verdict, good: dict[str, bool]) -> None:
    assert labels(verdict) == (good, {})


def test_the_middle_of_a_ranking_and_a_divided_vote_have_no_label() -> None:
    assert labels(v(choice="ranking", ranking=((0,), (1, 2), (3,))), texts="abcd") == (
        {"a": True, "d": False},
        {"middle": 2},
    )
    assert labels(v(), v(BOB, response=1)) == ({}, {"divided": 2})
    assert labels(v(), v(BOB, "tie")) == ({"a": True}, {"divided": 1})


def test_a_response_of_two_tasks_has_one_label() -> None:
    better, worse, again = task(v(), texts="ab"), task(v(response=1), texts="ac"), task(v(), texts="ad")
    found = labelled_of(a_round(better, worse, again), Ledger(), Terms())
    assert {row.response: (row.good, row.judgements) for row in found}["a"] == (True, 3)
    assert len({row.response for row in found}) == len(found)


def judgement_row(said: Verdict, task_id: int, ids: list[int], number: int) -> JudgementRow:
    """A judgement as a store has it, where responses have ids."""
    return JudgementRow(
        id=number,
        assignment_id=number,
        task_id=task_id,
        user_id=int(said.by),
        user=said.by,
        choice=said.choice,
        response_id=None if said.response is None else ids[said.response],
        left_id=ids[0],
        probability=said.probability,
        margin=said.margin,
        revision=1,
        late=said.late,
        received_at=0,
        active_ms=None,
        purpose=said.purpose,
        ranking=said.ranking and tuple(tuple(ids[place] for place in group) for group in said.ranking),
        corrected_id=None if said.corrected is None else ids[said.corrected],
        correction=said.correction,
        flags=said.flags,
        shown_order=tuple(ids[place] for place in said.shown),
    )


def by_lot(lot: random.Random, number: int) -> JudgedTask:
    """A task with judgements of every kind."""
    texts = "abc"[: lot.choice([2, 2, 3])]
    verdicts = []
    for by in range(lot.randint(0, 4)):
        choice = lot.choice(["response", "response", "response", "tie", "all_bad", "skip", "ranking"])
        more: dict[str, object] = {"purpose": lot.choice(["judge"] * 6 + ["gold", "repeat", "adjudicate"])}
        if choice == "ranking":
            order = lot.sample(range(len(texts)), len(texts))
            more["ranking"] = (
                tuple((i,) for i in order) if lot.random() < 0.6 else ((order[0],), tuple(sorted(order[1:])))
            )
        elif choice == "response":
            more |= {"probability": lot.choice([None, None, 0.6, 0.9]), "margin": lot.choice([None, 1.0, 3.0])}
        if lot.random() < 0.2:
            more |= {"corrected": 0, "correction": f"written by {by}"}
        more |= {"late": lot.random() < 0.15, "flags": ("odd",) if lot.random() < 0.05 else ()}
        more["shown"] = tuple(lot.sample(range(len(texts)), len(texts)))
        verdicts.append(v(str(by), choice, lot.randrange(len(texts)), **more))
    return task(*verdicts, prompt=asked(f"question {number}"), texts=texts)


@pytest.mark.parametrize(
    "counting",
    [
        Counting(),
        Counting("dawid_skene"),
        Counting("noisy_bradley_terry", late=False),
        Counting(late=False, flagged=False),
        Counting("dawid_skene", flagged=False),
    ],
    ids=str,
)
def test_pairs_are_those_that_training_makes_of_the_same_judgements(counting: Counting) -> None:
    """:mod:`rlhf_pipeline.aggregate` goes from task to task; this from vote to vote: both must decide alike."""
    lot = random.Random(3)
    tasks, rows, made = [], [], []
    for number in range(400):
        judged = by_lot(lot, number)
        made.append(judged)
        ids = [10 * number + place for place in range(len(judged.responses))]
        stored = tuple(StoredResponse(i, r.text, None, "") for i, r in zip(ids, judged.responses, strict=True))
        tasks.append(TaskRow(number, judged.new.digest, judged.prompt, stored, 1, 1, "open", {}))
        rows += [judgement_row(said, number, ids, len(rows) + n) for n, said in enumerate(judged.verdicts)]
    preferences, summary = aggregate(tasks, rows, source="people", counting=counting)
    preferences = [p for p in preferences if not p.tie]
    ledger = Ledger()
    found = pairs_of(a_round(*made), ledger, Terms(votes=counting))
    assert summary.corrections > 40
    assert summary.adjudicated > 40
    assert len(found) > 250

    def key(pair: Any) -> tuple[object, ...]:
        return (pair.prompt.id, pair.chosen, pair.rejected, pytest.approx(pair.probability, abs=1e-4), pair.margin)

    assert sorted(map(key, found), key=lambda k: k[:3]) == sorted(map(key, preferences), key=lambda k: k[:3])
    weights = {(p.prompt.id, p.chosen, p.rejected): p.weight for p in found}
    sizes = Counter(p.meta["task"] for p in preferences if "task" in p.meta)
    ranked = [p for p in preferences if sizes.get(p.meta.get("task")) == round(1 / p.weight) > 1]  # without a tie
    assert len(ranked) > 50
    assert all(weights[p.prompt.id, p.chosen, p.rejected] == p.weight for p in ranked)
    gone = removed(ledger)
    assert (gone.get("late", 0), gone.get("flagged", 0) > 0) == (summary.late, summary.flagged > 0)
    if counting != Counting():
        return
    assert gone["tie"] + gone["all_bad"] + gone["even"] == summary.ties
    assert gone["purpose"] == sum(row.purpose in ("gold", "repeat") for row in rows)


def test_every_judgement_is_used_or_counted() -> None:
    tasks = [
        task(v(), v(BOB, "skip"), v(EVE, purpose="gold"), prompt=asked("1")),
        task(v(), v(BOB, purpose="adjudicate"), prompt=asked("2")),
        task(v(identity="1" * 32), v(supersedes="1" * 32), prompt=asked("3")),
    ]
    ledger = Ledger()
    found = pairs_of(a_round(*tasks), ledger, Terms())
    of_judgements = sum(row["removed"] for row in ledger.to_json() if row["of"] == "judgements")
    assert of_judgements + sum(pair.judgements for pair in found) == 7


def test_rules_are_listed_in_their_order_with_nothing_removed() -> None:
    ledger = Ledger()
    pairs_of(a_round(task(v())), ledger, Terms(min_margin=1.0, min_probability=0.6, corrections=False))
    names = [row["rule"] for row in ledger.to_json()]
    assert names == [name for name in RULES if name in names]
    assert {"skip", "tie", "min_probability", "min_margin", "corrections"} <= set(names)
    assert "flagged" not in names


def test_texts_that_not_every_program_reads() -> None:
    assert is_plain("سلام", "😀", "a\u202eb", "")
    assert not is_plain("a", "b\0")
    assert not is_plain("\udc00")


def test_places_do_not_depend_on_the_order_in_a_file() -> None:
    ab, ba = task(v(), texts="ab"), task(v(response=1), texts="ba")
    assert ab == ba
    assert ab.verdicts[0].response == chose("a", ab)
