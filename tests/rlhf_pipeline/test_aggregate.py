from __future__ import annotations

import pytest

from rlhf_pipeline.aggregate import aggregate, raw_agreement
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store.records import JudgementRow, StoredResponse, TaskRow

A, B = 1, 2


def task(id_: int = 1) -> TaskRow:
    responses = (StoredResponse(id_ * 10 + A, "short", None, ""), StoredResponse(id_ * 10 + B, "much longer", None, ""))
    return TaskRow(id_, f"d{id_}", Prompt((Message("user", f"q{id_}"),)), responses, 1, 0, "open", {"origin": "x"})


def vote(user: int, choice: int | str, *, task_id: int = 1, sure: float | None = None, left: int = A) -> JudgementRow:
    response = task_id * 10 + choice if isinstance(choice, int) else None
    kind = "response" if isinstance(choice, int) else choice
    return JudgementRow(
        id=user + 100 * task_id,
        assignment_id=user + 100 * task_id,
        task_id=task_id,
        user_id=user,
        user=f"u{user}",
        choice=kind,  # type: ignore[arg-type]
        response_id=response,
        left_id=task_id * 10 + left,
        probability=sure,
        margin=2.0 * user if response else None,
        revision=1,
        late=False,
        received_at=0,
        active_ms=None,
    )


@pytest.mark.parametrize(
    ("votes", "chosen", "probability"),
    [
        ([vote(1, A)], "short", 1.0),
        ([vote(1, B), vote(2, B), vote(3, A)], "much longer", 2 / 3),
        ([vote(1, A), vote(2, "tie")], "short", 0.75),
        ([vote(1, A), vote(2, "all_bad")], "short", 0.75),
        ([vote(1, A), vote(2, "skip")], "short", 1.0),
        ([vote(1, A, sure=0.6)], "short", 0.6),
        ([vote(1, A, sure=0.6), vote(2, B, sure=0.9)], "much longer", 0.65),
    ],
)
def test_majority_and_share_by_hand(votes: list[JudgementRow], chosen: str, probability: float) -> None:
    [preference], _ = aggregate([task()], votes, source="people")
    assert (preference.chosen, preference.probability) == (chosen, pytest.approx(probability))
    assert preference.rejected == ({"short", "much longer"} - {chosen}).pop()
    assert preference.judgements == sum(v.choice != "skip" for v in votes)


@pytest.mark.parametrize("votes", [[vote(1, "tie")], [vote(1, A), vote(2, B)], [vote(1, A, sure=0.5)]])
def test_what_comes_out_even_is_counted_and_left_out(votes: list[JudgementRow]) -> None:
    preferences, summary = aggregate([task()], votes, source="people")
    assert preferences == []
    assert (summary.pairs, summary.ties, summary.preferences, summary.judgements) == (1, 1, 0, len(votes))


def test_votes_and_margin_are_kept_with_the_preference() -> None:
    [preference], _ = aggregate([task()], [vote(1, A), vote(2, A), vote(3, B), vote(4, "tie")], source="people")
    assert preference.meta == {"origin": "x", "votes": {"chosen": 2, "rejected": 1, "tie": 1, "all_bad": 0, "skip": 0}}
    assert preference.margin == pytest.approx(3.0)
    assert preference.source == "people"


def test_unjudged_and_skipped_pairs_are_no_preferences() -> None:
    preferences, summary = aggregate([task(1), task(2)], [vote(1, "skip", task_id=2)], source="people")
    assert preferences == []
    assert (summary.pairs, summary.skipped, summary.judgements, summary.agreement) == (0, 1, 0, None)


def test_agreement_counts_pairs_of_judges() -> None:
    # Task 1: A A B → of three pairs one agrees. Task 2: tie tie → one of one. Task 3: one judge → none. Task 4: a tie
    # and "none is good" → none of one.
    rows = [vote(1, A), vote(2, A), vote(3, B), *(vote(u, "tie", task_id=2) for u in (1, 2)), vote(1, A, task_id=3)]
    rows += [vote(1, "tie", task_id=4), vote(2, "all_bad", task_id=4)]
    assert raw_agreement(rows) == (pytest.approx(0.4), 5)


def test_side_and_length_shares() -> None:
    rows = [vote(1, A, left=A), vote(2, A, left=B), vote(3, B, left=B), vote(4, B, left=B), vote(5, "tie")]
    _, summary = aggregate([task()], rows, source="people")
    assert (summary.left_share, summary.longer_share, summary.annotators) == (0.75, 0.5, 5)
