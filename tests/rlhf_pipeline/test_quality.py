"""The report of a round: each number by hand on a few rows, then people with known habits."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_pipeline.agreement import NO_RATINGS, ONE_RATER, krippendorff_alpha
from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.quality import QualityReport, comparisons_of, quality_report, round_quality
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Attribute, Form, JudgementRow, NewResponse, NewTask, TaskRow
from tests.rlhf_pipeline.made_up_round import DAY, NOW, planted, progress, said, task, terms


def report(tasks: list[TaskRow], rows: list[JudgementRow], form: Form | None = None) -> QualityReport:
    return quality_report(terms(form=form or Form()), tasks, rows, progress(len(tasks), 10), now=NOW)


def value(found: QualityReport, question: str, name: str) -> float | None:
    [estimate] = [m.estimate for m in found.measures if (m.question, m.name) == (question, name)]
    return estimate.value


def test_agreement_by_hand() -> None:
    """Two tasks, three people: aab and bbb. Equal pairs: 1 of 3 and 3 of 3, so 4 of 6."""
    tasks = [task(1, "x", "y"), task(2, "x", "y")]
    rows = [said(1, 1, "ann", 1), said(2, 1, "bob", 1), said(3, 1, "cem", 2)]
    rows += [said(4 + n, 2, who, 2) for n, who in enumerate(("ann", "bob", "cem"))]
    found = report(tasks, rows)
    assert value(found, "Which is better", "share that agrees") == pytest.approx(4 / 6)
    # n = 6 ratings, 2 first and 4 second: D_o = 2/6, D_e = 2·2·4/(6·5).
    assert value(found, "Which is better", "Krippendorff's α") == pytest.approx(1 - (2 / 6) / (16 / 30))
    assert value(found, "Which is better", "Fleiss' κ") == pytest.approx((4 / 6 - 20 / 36) / (1 - 20 / 36))
    [split] = found.disagreements
    assert (split.task_id, split.judgements, split.adjudicated) == (1, 3, False)
    assert split.agreement == pytest.approx(1 / 3)
    assert split.answers == (("response", 11, 2), ("response", 12, 1))


def test_only_judgements_of_the_round_count_for_agreement() -> None:
    tasks = [task(1, "x", "y"), task(2, "x", "y")]
    rows = [said(1, 1, "ann", 1), said(2, 1, "bob", 1)]
    found = report(tasks, rows)
    for purpose in ("gold", "repeat", "training", "adjudicate"):
        more = [*rows, said(3, 1, "cem", 2, purpose=purpose), said(4, 2, "cem", 2, purpose=purpose)]
        again = report(tasks, more)
        assert again.measures == found.measures
        assert again.disagreements == ()


def test_skips_are_no_answers() -> None:
    found = report([task(1, "x", "y")], [said(1, 1, "ann", 1), said(2, 1, "bob", "skip")])
    assert [m.estimate.why for m in found.measures] == [ONE_RATER] * 3
    assert {a.user: (a.judgements, a.skips) for a in found.annotators} == {"ann": (1, 0), "bob": (0, 1)}


def test_a_decided_task_goes_to_the_end_of_the_disagreements() -> None:
    tasks = [task(n, "x", "y") for n in (1, 2)]
    rows = [said(n, t, who, a) for n, (t, who, a) in enumerate([(1, "ann", 1), (1, "bob", 2), (2, "ann", 1)], 1)]
    rows += [said(4, 2, "bob", "tie"), said(5, 1, "lea", 1, purpose="adjudicate")]
    found = report(tasks, rows)
    assert [(d.task_id, d.adjudicated) for d in found.disagreements] == [(2, False), (1, True)]
    assert "lea" not in {a.user for a in found.annotators}
    assert found.disagreements[0].answers == (("response", 21, 1), ("tie", None, 1))


def test_every_question_of_the_form_has_its_agreement() -> None:
    form = Form(strength=True, rules=("rude",), attributes=(Attribute("helpful"),))
    tasks = [task(n, "x", "y") for n in (1, 2, 3)]
    rows = [
        said(
            10 * t + n,
            t,
            who,
            1 if t == 1 else 2,
            strength=1 + (t == 3),
            ratings={10 * t + 1: {"helpful": t}, 10 * t + 2: {"helpful": 6 - t}},
            rules={10 * t + 1: ("rude",) if t == 2 else (), 10 * t + 2: ("rude",) if who == "ann" else ()},
        )
        for t in (1, 2, 3)
        for n, who in enumerate(("ann", "bob"))
    ]
    found = report(tasks, rows, form)
    assert value(found, "How much better", "Krippendorff's α, ordinal") == pytest.approx(1)
    assert value(found, "helpful", "Krippendorff's α, ordinal") == pytest.approx(1)
    # Of six responses three are agreed on (one rude, two not) … and three split: n = 12, 5 rude; D_o = 6/12.
    assert value(found, "rude", "Krippendorff's α") == pytest.approx(1 - (6 / 12) / (2 * 5 * 7 / (12 * 11)))


def test_how_much_better_takes_its_distance_from_strength() -> None:
    tasks = [task(n, "x", "y") for n in (1, 2)]
    near = [said(1, 1, "ann", 1, strength=1), said(2, 1, "bob", 1, strength=2), said(3, 2, "ann", 2, strength=3)]
    near += [said(4, 2, "bob", 2, strength=3)]
    far = [near[0], replace(near[1], strength=3), near[2], replace(near[3], strength=1)]
    values = [
        value(report(tasks, rows, Form(strength=True)), "How much better", "Krippendorff's α, ordinal")
        for rows in (near, far)
    ]
    assert values[0] is not None
    assert values[1] is not None
    assert 1 > values[0] > values[1]


def test_rankings_agree_pair_by_pair() -> None:
    tasks = [task(1, "x", "y", "z")]
    rows = [
        said(1, 1, "ann", "ranking", ranking=((11,), (12,), (13,))),
        said(2, 1, "bob", "ranking", ranking=((11,), (13,), (12,))),
    ]
    found = report(tasks, rows, Form(kind="ranking"))
    assert value(found, "Which is better", "share that agrees") == pytest.approx(2 / 3)
    assert found.disagreements[0].answers == (("response", 11, 2),)
    tied = [replace(row, ranking=((11, 12), (13,))) for row in rows[:1]] + rows[1:]
    assert report(tasks, tied).disagreements[0].answers == (("tie", None, 1), ("response", 11, 1))


def test_what_hangs_together_is_drawn_together() -> None:
    """The comparisons of one ranking, and the ratings of the responses to one prompt."""
    form = Form(kind="ranking", rules=("rude",), attributes=(Attribute("helpful"),))
    tasks = [task(n, "x", "y", "z") for n in range(1, 9)]
    rows = [
        said(
            100 * len(who) + n,
            n,
            who,
            "ranking",
            ranking=tuple((10 * n + place,) for place in ((1, 2, 3) if (n + len(who)) % 3 else (3, 1, 2))),
            ratings={10 * n + place: {"helpful": 1 + (n * place + len(who)) % 5} for place in (1, 2, 3)},
            rules={10 * n + place: ("rude",) if (n + place + len(who)) % 4 == 0 else () for place in (1, 2, 3)},
        )
        for who in ("ann", "bobby")
        for n in range(1, 9)
    ]
    found = {m.question: m.estimate for m in report(tasks, rows, form).measures if "Krippendorff" in m.name}
    given = comparisons_of({t.id: t for t in tasks}, rows)
    assert found["Which is better"] == krippendorff_alpha(given, groups={pair: pair[0] for pair in given})
    for name, level, answer in (
        ("helpful", "ordinal", lambda row, r: row.ratings[r]["helpful"]),
        ("rude", "nominal", lambda row, r: "rude" in row.rules[r]),
    ):
        each = {(n, 10 * n + p): {} for n in range(1, 9) for p in (1, 2, 3)}
        for row in rows:
            for r in row.ratings:
                each[row.task_id, r][row.user_id] = answer(row, r)
        assert found[name] == krippendorff_alpha(each, level, groups={item: item[0] for item in each})


def test_the_most_judged_of_equally_split_tasks_comes_first() -> None:
    tasks = [task(n, "x", "y") for n in (1, 2)]
    rows = [said(n, 1, who, a) for n, (who, a) in enumerate([("ann", 1), ("bob", 2), ("cem", "skip")], 1)]
    rows += [said(n, 2, who, a) for n, (who, a) in enumerate([("ann", 1), ("bob", 2), ("cem", "tie")], 11)]
    rows += [said(21, 1, "dan", 1, purpose="gold")]
    found = report(tasks, rows).disagreements
    assert [(d.task_id, d.agreement, d.judgements) for d in found] == [(2, 0, 3), (1, 0, 2)]


def test_known_answers_count_for_reliability() -> None:
    tasks = [task(n, "x", "y", gold=1) for n in range(1, 11)]
    rows = [said(100 * len(who) + n, n, who, 1, purpose="gold") for who in ("ann", "bobby") for n in range(1, 11)]
    [ann, _] = report(tasks, rows).annotators
    assert ann.reliability is not None
    assert ann.reliability.n == 10


def test_a_round_of_a_store(tmp_path: Path) -> None:
    store = JudgementStore.open(tmp_path / "judgements.db")
    round_id = store.open_round("people", overlap=2, seed=0, source_digest="d", lease_seconds=60)
    store.open_round("other", overlap=2, seed=0, source_digest="d", lease_seconds=60)
    store.add_tasks(round_id, [NewTask(Prompt((Message("user", "q"),)), (NewResponse("x"), NewResponse("y")))])
    before = time.time() * 1000
    found = round_quality(store, round_id)
    assert before - 1 <= found.at <= time.time() * 1000 + 1
    assert (found.round_id, found.progress.wanted) == (round_id, 2)
    assert round_quality(store, round_id, now=7).at == 7
    with pytest.raises(StoreError):
        round_quality(store, 99)
    store.close()


def test_kappa_of_two_people_needs_enough_in_common() -> None:
    tasks = [task(n, "x", "y") for n in range(1, 13)]
    rows = [said(100 + n, n, "ann", 1 + n % 2) for n in range(1, 13)]
    rows += [said(200 + n, n, "bob", 1 + n % 2) for n in range(1, 13)]
    rows += [said(300 + n, n, "cem", 1) for n in range(1, 10)]
    [kappa] = report(tasks, rows).kappas
    assert (set(kappa.names), kappa.estimate.value, kappa.estimate.n) == ({"ann", "bob"}, pytest.approx(1), 12)


def test_pace_late_work_and_progress_are_in_it() -> None:
    tasks = [task(n, "x", "y") for n in range(1, 21)]
    rows = [said(n, n, "ann", 1, received_at=NOW - DAY + n * 3_600_000, late=n < 4) for n in range(1, 21)]
    found = report(tasks, rows)
    assert found.late == 3
    assert found.forecast.remaining == 10
    assert found.forecast.finish is not None
    assert found.forecast.judging_ms == 10 * 10_000
    assert found.timeline[-1] == (NOW, 20)
    assert found.progress.wanted == 60


def test_nothing_judged_yet() -> None:
    found = report([task(1, "x", "y")], [])
    assert [m.estimate.why for m in found.measures] == [NO_RATINGS] * 3
    assert (found.annotators, found.disagreements, found.kappas, found.timeline) == ((), (), (), ())
    assert found.forecast.why == "nobody has judged yet"


def test_rows_of_tasks_that_are_gone_are_left_out() -> None:
    assert report([task(1, "x", "y")], [said(1, 2, "ann", 1)]).annotators == ()


def test_it_can_be_written_as_json() -> None:
    tasks, rows = planted(0, tasks=40)
    text = json.dumps(report(tasks, rows).to_json())
    again = json.loads(text)
    assert again["annotators"][0]["gold"]["n"] == 5
    assert {"value", "low", "high", "n", "why"} == set(again["measures"][0]["estimate"])
