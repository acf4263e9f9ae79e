"""What people are asked, as the configuration has it: forms, rankings, gold, order; and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf_pipeline.data import SourceConfig, read_demonstrations
from rlhf_pipeline.errors import ConfigError
from rlhf_pipeline.records import Preference
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer, Attribute, Form, Gold
from stages import collect
from stages.collect import Config
from stages.rounds import ranking_tasks
from stages.settings import load
from tests.stages.test_collect import exported, job, prompt, response_set, run_folder

YAML = """
run: {folder: runs/x}
model: {name: pocket}
data: {demonstrations: pocket, prompts: pocket}
collect:
  form:
    strength: true
    all_bad: true
    rules: ["is it rude?"]
    attributes: [{name: helpful, low: not at all, high: very, points: 7}]
    correction: true
    comment: true
    flags: [personal data]
  order: random
  gold_rate: 0.1
  edit_minutes: 15
"""


def test_the_form_of_the_configuration_is_the_form_of_the_round(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(YAML)
    settings = load(path)
    assert settings.collect.form.form() == Form(
        strength=True,
        all_bad=True,
        rules=("is it rude?",),
        attributes=(Attribute("helpful", "not at all", "very", 7),),
        correction=True,
        comment=True,
        flags=("personal data",),
    )
    assert Config().form.form() == Form(), "with no set-up: which of two is better, or a tie"
    folder = run_folder(tmp_path, [response_set(0, "a", "b")])
    round_id = collect.open_for_people(job(folder, settings.collect).settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    found = store.round(round_id)
    assert found.form == settings.collect.form.form()
    assert (found.order, found.gold_rate, found.edit_minutes, found.repeat_rate) == ("random", 0.1, 15, 0.0)
    store.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"form": {"kind": "ranking", "strength": True}}, "strength is asked of pairs"),
        ({"judges": "simulated", "form": {"kind": "ranking"}}, "ranking is asked of people"),
        ({"form": {"rules": ["a", "a"]}}, "rules are different texts"),
        ({"form": {"flags": [" "]}}, "flags are different texts"),
        ({"form": {"attributes": [{"name": "x"}, {"name": "x"}]}}, "same name"),
        ({"form": {"attributes": [{"name": "x", "points": 1}]}}, "greater than or equal to 2"),
        ({"order": "uncertainty"}, "uncertainty_from names no reward model"),
        ({"ranking_size": 10}, "less than or equal to 9"),
        ({"gold_rate": 0.9}, "less than or equal to 0.5"),
    ],
)
def test_forms_and_terms_that_make_no_sense(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config(**wrong)


# Rankings


def test_a_ranking_has_distinct_responses_to_one_prompt_as_many_as_wanted() -> None:
    sets = [response_set(0, "a", "a", "b", "c", "d", "e"), response_set(1, "a", "b"), response_set(2, "a", "a")]
    tasks = ranking_tasks(sets, Config(ranking_size=3), seed=0)
    assert [len(t.responses) for t in tasks] == [3, 2]
    assert {r.text for r in tasks[0].responses} < {"a", "b", "c", "d", "e"}
    assert [t.digest for t in tasks] == [t.digest for t in ranking_tasks(sets, Config(ranking_size=3), seed=0)]
    assert len(ranking_tasks(sets, Config(max_pairs=1), seed=0)) == 1


def test_rankings_come_out_as_all_of_their_pairs_kept_together_by_prompt(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(i, *(f"{c}{i}" for c in "abcd")) for i in range(3)])
    config = Config(form={"kind": "ranking"})
    round_id = collect.open_for_people(job(folder, config).settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    ann = store.user("ann")
    for given in store.lease(round_id, ann, 9):
        best_first = tuple((r.id,) for r in sorted(given.responses, key=lambda r: r.text))
        store.submit(ann, Answer(f"token-{given.id}", given.id, "ranking", ranking=best_first))
    store.close()
    metrics = collect.run(job(folder, config))
    assert (metrics["judgements"], metrics["preferences"]) == (3, 18)
    out = exported(folder)
    assert [p.prompt.messages[0].content for p in out] == [f"question {i}" for i in range(3) for _ in range(6)]
    assert all(p.chosen < p.rejected for p in out)
    assert {p.weight for p in out} == {1 / 6}


# Corrections


def test_corrected_responses_come_out_as_demonstrations_that_can_be_read(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(i, f"a{i}", f"b{i}") for i in range(2)])
    config = Config(form={"correction": True})
    round_id = collect.open_for_people(job(folder, config).settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    ann = store.user("ann")
    for given in store.lease(round_id, ann, 9):
        bad = given.responses[0].id
        text = f"as it ought to be, {given.prompt[0].content}"
        store.submit(ann, Answer(f"token-{given.id}", given.id, "tie", corrected_id=bad, correction=text))
    store.close()
    metrics = collect.run(job(folder, config))
    assert (metrics["preferences"], metrics["corrections"], metrics["ties"]) == (0, 2, 2)
    assert [p.chosen for p in exported(folder) if not p.tie] == [f"as it ought to be, question {i}" for i in range(2)]
    path = folder / "collect.partial" / "demonstrations.jsonl"
    read = read_demonstrations(SourceConfig(path=str(path))).records
    assert [(d.prompt, d.response) for d in read] == [(prompt(i), f"as it ought to be, question {i}") for i in range(2)]


def test_without_corrections_there_is_no_file_of_them(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(0, "a", "b")])
    round_id = collect.open_for_people(job(folder, Config()).settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    ann = store.user("ann")
    [given] = store.lease(round_id, ann, 1)
    store.submit(ann, Answer("token-1", given.id, "response", given.responses[0].id))
    store.close()
    made = job(folder, Config())
    (made.folder / "demonstrations.jsonl").write_text("left by a try that was interrupted")
    collect.run(made)
    assert sorted(path.name for path in made.folder.iterdir()) == ["preference_report.json", "preferences.jsonl"]


# Gold


def gold_file(tmp_path: Path, rows: list[Preference]) -> str:
    path = tmp_path / "gold.jsonl"
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return str(path)


def test_gold_questions_come_from_a_file_and_are_no_preferences(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(0, "a", "b")])
    rows = [
        Preference(prompt(8), "right", "wrong", meta={"explanation": "it is true"}),
        Preference(prompt(9), "this", "that", probability=0.5),
    ]
    config = Config(gold=gold_file(tmp_path, rows), training_tasks=1, gold_rate=0.5)
    for _ in range(2):  # opening again changes nothing
        round_id = collect.open_for_people(job(folder, config).settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    known = [t for t in store.tasks(round_id) if t.gold is not None]
    right = next(r.id for r in known[0].responses if r.text == "right")
    assert [t.gold for t in known] == [Gold("response", right, "it is true"), Gold("tie")]
    assert sum(e.verb == "gold" for e in store.events()) == 2
    assert store.progress(round_id).wanted == 1
    ann = store.user("ann")
    for given in store.lease(round_id, ann, 9):
        store.submit(ann, Answer(f"token-{given.id}", given.id, "response", given.responses[0].id))
    assert {j.purpose for j in store.judgements(round_id)} >= {"training", "judge"}
    store.close()
    assert collect.run(job(folder, config))["preferences"] == 1
    assert [p.prompt for p in exported(folder)] == [prompt(0)]


def test_a_gold_question_that_leaves_the_file_is_given_no_more(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(0, "a", "b")])
    rows = [Preference(prompt(n), "right", "wrong") for n in (8, 9)]
    config = Config(gold=gold_file(tmp_path, rows), training_tasks=2)
    collect.open_for_people(job(folder, config).settings, folder)
    gold_file(tmp_path, rows[1:])
    round_id = collect.open_for_people(job(folder, config).settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    held = store.lease(round_id, store.user("ann"), 9)
    assert [(a.prompt[0].content, a.purpose) for a in held] == [("question 9", "training"), ("question 0", "judge")]
    store.close()


# Order


class _Scorer:
    """A reward model that scores by length."""

    def score(self, prompts: Any, responses: list[str], *, ended: list[bool]) -> list[float]:
        assert len(prompts) == len(responses) == len(ended)
        return [float(len(text)) for text in responses]


def test_by_uncertainty_pairs_of_like_scores_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "we could walk to the lake and look at the birds"
    sets = [response_set(i, "we could walk", long[: 20 + 9 * i]) for i in (3, 0, 2, 1)]
    folder = run_folder(tmp_path, sets)
    named: list[Path] = []

    def open_scorer(folder: Path) -> _Scorer:
        named.append(folder)
        return _Scorer()

    monkeypatch.setattr("rlhf_pipeline.reward_models.Scorer.open", open_scorer)
    config = Config(order="uncertainty", uncertainty_from=str(folder / "sample"))
    settings: Any = job(folder, config).settings
    path = tmp_path / "c.yaml"
    path.write_text(YAML)
    settings.model = load(path).model
    for _ in range(2):
        round_id = collect.open_for_people(settings, folder)
    assert named == [folder / "sample"], "what has its priority is not scored again"
    store = JudgementStore.open(folder / "judgements.db")
    rows = sorted(store.tasks(round_id), key=lambda t: -t.priority)
    assert [t.prompt.messages[0].content for t in rows] == [f"question {i}" for i in range(4)]
    store.close()
    missing = Config(order="uncertainty", uncertainty_from=str(folder / "nowhere"))
    settings.collect = missing
    (folder / "judgements.db").unlink()
    with pytest.raises(ConfigError, match=r"collect.uncertainty_from: .*nowhere is no folder"):
        collect.open_for_people(settings, folder)
