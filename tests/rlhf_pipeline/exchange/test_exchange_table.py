"""The table in the package's docstring says what comes back of each format; here each cell of it is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import rlhf_pipeline.exchange
from rlhf_pipeline.errors import DataError
from rlhf_pipeline.exchange import EXPORT_FORMATS, JudgedRound, JudgedTask, Verdict
from rlhf_pipeline.store.records import Form, Gold
from tests.rlhf_pipeline.exchange.judged_rounds import ANN, BOB, a_round, asked, task, there_and_back

PLAIN = Form(all_bad=True)
RANKING = Form(kind="ranking", all_bad=True)
IDS = ["00000000000000000000000000000001", "00000000000000000000000000000002"]


def table() -> dict[str, dict[str, bool]]:
    """Feature → format → whether it comes back."""
    lines = (rlhf_pipeline.exchange.__doc__ or "").splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("====")]
    columns = lines[rules[0] + 1].split()[1:]
    found = {}
    for line in lines[rules[1] + 1 : rules[2]]:
        name, cells = line[:24].strip(), line[24:].split()
        assert set(cells) <= {"yes", "no"}, line
        found[name] = dict(zip(columns, [cell == "yes" for cell in cells], strict=True))
    return found


def pref(**more: object) -> Verdict:
    return Verdict(ANN, "response", 0, identity=IDS[0], received_at=1_700_000_000_000, **more)  # type: ignore[arg-type]


def rich() -> Verdict:
    return pref(
        strength=2,
        margin=2.0,
        rules={0: (), 1: ("is rude", 'is <false> & "bold"')},
        ratings={0: {"helpful": 5, "اختصار": 1}, 1: {"helpful": 1, "اختصار": 3}},
        flags=("not English",),
        comment='so\n"so" \u202e',
        corrected=1,
        correction="worth it",
    )


Same = Callable[[JudgedTask, JudgedTask], bool]
RANKED = task(Verdict(ANN, "ranking", ranking=((2,), (0, 1), (3,)), identity=IDS[0]), texts=("a", "b", "c", "d"))


def judged(judgement: Verdict, **rest: object) -> JudgedRound:
    return a_round(task(judgement, **rest), form=PLAIN)  # type: ignore[arg-type]


def field(*names: str) -> Same:
    """These fields of the only judgement are the same."""

    def same(a: JudgedTask, b: JudgedTask) -> bool:
        [x], [y] = a.verdicts, b.verdicts
        return all(getattr(x, name) == getattr(y, name) for name in names)

    return same


def told_apart(a: JudgedTask, b: JudgedTask) -> bool:
    return len({v.by for v in b.verdicts}) == 2 == len(b.verdicts)


def same_people(a: JudgedTask, b: JudgedTask) -> bool:
    return [v.by for v in a.verdicts] == [v.by for v in b.verdicts]


def same_task(a: JudgedTask, b: JudgedTask) -> bool:
    return a.new.digest == b.new.digest and field("choice", "response")(a, b)


def everything_of(a: JudgedTask, b: JudgedTask) -> bool:
    return (a.meta, a.responses) == (b.meta, b.responses)


def sampled() -> JudgedRound:
    one = task(pref(), meta={"source": "x"})
    responses = tuple(replace(r, finish="eos", sampler_digest="s1") for r in one.responses)
    return a_round(replace(one, responses=responses), form=PLAIN)


TRIED: dict[str, tuple[JudgedRound, Same]] = {
    "better response": (judged(pref()), same_task),
    "several turns": (judged(pref(), prompt=asked("hi", "hello", "why?")), same_task),
    "system message": (judged(pref(), prompt=asked("why?", system="Be brief.")), same_task),
    "white space at ends": (judged(pref(), prompt=asked(" why?\n"), texts=(" good ", "bad\n\n")), same_task),
    "right-to-left text": (judged(pref(), prompt=asked("چرا؟ \u202eabc"), texts=("زیرا", "نه \u2028 נו")), same_task),
    "NUL, half surrogates": (judged(pref(), texts=("a\0b", "c\ud800d")), same_task),
    "tie": (judged(Verdict(ANN, "tie", identity=IDS[0])), same_task),
    "none is good": (judged(Verdict(ANN, "all_bad", identity=IDS[0])), same_task),
    "skip": (judged(Verdict(ANN, "skip", identity=IDS[0])), same_task),
    "ranking with ties": (a_round(RANKED, form=RANKING), field("ranking")),
    "strength": (a_round(task(rich())), field("strength")),
    "margin": (judged(pref(margin=1.25)), field("margin")),
    "probability": (judged(pref(probability=0.75)), field("probability")),
    "rules": (a_round(task(rich())), field("rules")),
    "ratings": (a_round(task(rich())), field("ratings")),
    "correction": (a_round(task(rich())), field("corrected", "correction")),
    "comment": (a_round(task(rich())), field("comment")),
    "flags": (a_round(task(rich())), field("flags")),
    "judges told apart": (
        a_round(task(pref(), replace(pref(), by=BOB, identity=IDS[1])), form=PLAIN), told_apart
    ),
    "same pseudonyms": (judged(pref()), same_people),
    "adjudication": (judged(pref(purpose="adjudicate")), field("purpose")),
    "known answer (gold)": (judged(pref(), gold=Gold("response", 0, "so")), lambda a, b: a.gold == b.gold),
    "repeat, training": (
        a_round(task(pref(), pref(purpose="repeat"), pref(purpose="training")), form=PLAIN),
        lambda a, b: [v.purpose for v in b.verdicts] == ["judge", "repeat", "training"],
    ),
    "revisions": (
        a_round(task(pref(), Verdict(ANN, "tie", identity=IDS[1], revision=2, supersedes=IDS[0])), form=PLAIN),
        lambda a, b: [v.supersedes for v in b.verdicts] == [None, IDS[0]],
    ),
    "order shown": (judged(pref(shown=(1, 0))), field("shown")),
    "time spent": (judged(pref(active_ms=1234)), field("active_ms")),
    "time received": (judged(pref()), field("received_at")),
    "sampler, metadata": (sampled(), everything_of),
    "task without judgement": (a_round(task(), form=PLAIN), lambda a, b: a.new.digest == b.new.digest),
}  # fmt: skip


def test_the_table_and_the_trials_are_about_the_same_things() -> None:
    assert list(table()) == list(TRIED)
    for cells in table().values():
        assert set(cells) == set(EXPORT_FORMATS)


@pytest.mark.parametrize("format", EXPORT_FORMATS)
@pytest.mark.parametrize("feature", TRIED)
def test_what_comes_back_is_what_the_table_says(feature: str, format: str, tmp_path: Path) -> None:
    given, same = TRIED[feature]
    try:
        back = there_and_back(tmp_path, given, format)
    except DataError as error:
        assert "holds a judgement" in str(error)  # noqa: PT017
        back = []
    comes_back = len(back) == 1 and _holds(same, given.tasks[0], back[0])
    assert comes_back == table()[feature][format]


def _holds(same: Same, before: JudgedTask, after: JudgedTask) -> bool:
    try:
        return same(before, after)
    except ValueError:  # another number of judgements
        return False
