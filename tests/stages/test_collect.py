from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from rlhf_pipeline.artifacts import complete
from rlhf_pipeline.data import DataConfig, SourceConfig
from rlhf_pipeline.errors import ConfigError, DataError, UsageError, WaitingForPeople
from rlhf_pipeline.exchange import into_store
from rlhf_pipeline.pocket.annotators import UNREADABLE
from rlhf_pipeline.pocket.grammar import demonstrations
from rlhf_pipeline.pocket.judge import broken_rules, gold
from rlhf_pipeline.records import (
    Message,
    Preference,
    Prompt,
    ResponseSet,
    RuledResponse,
    SampledResponse,
    read_jsonl,
    write_jsonl,
)
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Answer
from stages import collect, simulated
from stages.collect import Config
from stages.job import Job
from stages.rounds import FormSection, pair_tasks, ranking_tasks

ROOT = Path(__file__).parents[2]


def prompt(number: int) -> Prompt:
    return Prompt((Message("user", f"question {number}"),))


def response_set(number: int, *texts: str) -> ResponseSet:
    return ResponseSet(prompt(number), tuple(SampledResponse(t, (1, 2), not t.endswith("…")) for t in texts))


def pocket_sets(count: int) -> list[ResponseSet]:
    """Pocket prompts with a right response, one about something else, and the right one cut off."""
    made = demonstrations(count, 5)
    return [
        ResponseSet(
            one.prompt,
            (
                SampledResponse(one.response, (), True),
                SampledResponse(made[(i + 7) % count].response, (), True),
                SampledResponse(one.response[: len(one.response) // 2], (), False),
            ),
        )
        for i, one in enumerate(made)
    ]


def run_folder(tmp_path: Path, sets: list[ResponseSet]) -> Path:
    """A run folder with a finished sample stage."""
    partial = tmp_path / "sample.partial"
    partial.mkdir(parents=True)
    write_jsonl(partial / "responses.jsonl", (s.to_json() for s in sets))
    made_by: dict[str, Any] = {"stage": "sample", "kind": "responses", "settings": {}, "seed": 0, "inputs": {}}
    made_by |= {"data": {}, "base": None, "tokenizer": None, "metrics": {}, "device": "cpu", "seconds": 1.0}
    complete(partial, tmp_path / "sample", **made_by)
    return tmp_path


def job(folder: Path, config: Config, *, preferences: Path | None = None, seed: int = 0, sampled: bool = True) -> Job:
    from rlhf_pipeline.artifacts import open_artifact

    partial = folder / "collect.partial"
    partial.mkdir(exist_ok=True)
    data = DataConfig(preferences=SourceConfig(path=str(preferences)) if preferences else None)
    settings: Any = SimpleNamespace(collect=config, data=data, run=SimpleNamespace(seed=seed))
    inputs = {"sample": open_artifact(folder / "sample")} if sampled else {}
    return Job(config, settings, partial, inputs, folder, seed, "cpu")


def exported(folder: Path) -> list[Preference]:
    return [Preference.from_json(row) for row in read_jsonl(folder / "collect.partial" / "preferences.jsonl")]


# Pairs


def test_pairs_are_of_distinct_texts_and_every_response_comes_before_one_comes_twice() -> None:
    [task] = pair_tasks([response_set(0, "a", "a", "b…")], Config(pairs_per_prompt=5), seed=0)
    assert [(r.text, r.finish) for r in task.responses] == [("a", "eos"), ("b…", "length")]
    assert pair_tasks([response_set(0, "a", "a")], Config(), seed=0) == []
    for seed in range(5):
        first, second = pair_tasks([response_set(0, "a", "b", "c", "d")], Config(pairs_per_prompt=2), seed=seed)
        assert sorted(r.text for t in (first, second) for r in t.responses) == ["a", "b", "c", "d"]


def test_at_most_max_pairs_are_spread_over_the_prompts() -> None:
    sets = [response_set(i, "a", "b", "c", "d") for i in range(4)]
    tasks = pair_tasks(sets, Config(pairs_per_prompt=6, max_pairs=6), seed=0)
    asked = [t.prompt.messages[0].content for t in tasks]
    assert set(asked) == {f"question {i}" for i in range(4)}
    assert asked == sorted(asked), "in the order of the prompts"
    assert len({t.digest for t in tasks}) == 6
    everything = {t.digest for t in pair_tasks(sets, Config(pairs_per_prompt=6), seed=0)}
    assert {t.digest for t in tasks} < everything


def test_whose_pairs_are_among_max_pairs_is_drawn_by_lot() -> None:
    """Not those of the first prompts: the held-out ones are the last."""
    sets = [response_set(i, "a", "b", "c", "d") for i in range(400)]
    for make in (pair_tasks, ranking_tasks):
        numbers = [[sets.index(s) for t in make(sets, Config(max_pairs=100), seed=seed) for s in sets
                    if s.prompt.id == t.prompt.id] for seed in (0, 1)]  # fmt: skip
        for drawn in numbers:
            assert len(drawn) == len(set(drawn)) == 100
            assert drawn == sorted(drawn)
            assert 10 <= sum(number >= 300 for number in drawn) <= 40, "about a quarter"
        assert numbers[0] != numbers[1]


def test_pairs_depend_on_the_seed_alone() -> None:
    sets = [response_set(i, "a", "b", "c", "d") for i in range(8)]
    digests = [[t.digest for t in pair_tasks(sets, Config(), seed=seed)] for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


# People


def judge_all(folder: Path, round_id: int, choice: str = "a", limit: int = 1000) -> None:
    store = JudgementStore.open(folder / "judgements.db")
    ann = store.user("ann")
    for given in store.lease(round_id, ann, limit):
        best = next(r.id for r in given.responses if r.text.startswith(choice))
        store.submit(ann, Answer(f"token-{given.id}", given.id, "response", best))
    store.close()


def test_the_stage_waits_for_people_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(i, f"a{i}", f"b{i}") for i in range(5)])
    with pytest.raises(WaitingForPeople, match="5 of 5 judgements are still needed") as waiting:
        collect.run(job(folder, Config()))
    assert f"rlhf annotate {folder}" in str(waiting.value)
    assert f"rlhf run {folder}" in str(waiting.value)
    settings: Any = job(folder, Config()).settings
    round_id = collect.open_for_people(settings, folder)
    judge_all(folder, round_id, limit=3)
    with pytest.raises(WaitingForPeople, match=r"2 of 5 .* by 1 person"):
        collect.run(job(folder, Config()))
    judge_all(folder, round_id)
    metrics = collect.run(job(folder, Config()))
    assert (metrics["judgements"], metrics["preferences"], metrics["annotators"]) == (5, 5, 1)
    assert [(p.chosen, p.rejected, p.source) for p in exported(folder)] == [
        (f"a{i}", f"b{i}", "people") for i in range(5)
    ]


def test_people_keep_their_work_when_the_same_responses_are_sampled_again_or_more_pairs_are_wanted(
    tmp_path: Path,
) -> None:
    folder = run_folder(tmp_path, [response_set(i, f"a{i}", f"b{i}", f"c{i}") for i in range(4)])
    settings: Any = job(folder, Config(pairs_per_prompt=1)).settings
    round_id = collect.open_for_people(settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    ann = store.user("ann")
    for given in store.lease(round_id, ann, 10):
        store.submit(ann, Answer(f"token-{given.id}", given.id, "response", given.responses[0].id))
    store.close()
    (folder / "sample" / "manifest.json").write_text((folder / "sample" / "manifest.json").read_text() + "\n")
    with pytest.raises(WaitingForPeople, match="8 of 12"):
        collect.run(job(folder, Config(pairs_per_prompt=3)))
    with pytest.raises(WaitingForPeople, match="4 of 8"):
        collect.run(job(folder, Config(pairs_per_prompt=1, overlap=2)))
    assert collect.run(job(folder, Config(pairs_per_prompt=1)))["preferences"] == 4


def test_other_responses_make_a_new_round_and_the_old_judgements_stay(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(0, "a", "b")])
    settings: Any = job(folder, Config()).settings
    first = collect.open_for_people(settings, folder)
    judge_all(folder, first)
    run_folder(tmp_path, [response_set(0, "a", "z")])
    second = collect.open_for_people(settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    assert (len(store.judgements(first)), len(store.judgements(second))) == (1, 0)
    store.close()


def test_guidelines_come_from_the_file_that_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(0, "a", "b")])
    (tmp_path / "rules.md").write_text("# Be kind")
    for config, text in ((Config(), "Helpful"), (Config(guidelines=str(tmp_path / "rules.md")), "# Be kind")):
        round_id = collect.open_for_people(job(folder, config).settings, folder)
        store = JudgementStore.open(folder / "judgements.db")
        assert text in store.guidelines(round_id)
        store.close()
    with pytest.raises(ConfigError, match=r"collect.guidelines"):
        collect.open_for_people(job(folder, Config(guidelines="nowhere.md")).settings, folder)


def test_mistakes_are_named(tmp_path: Path) -> None:
    settings: Any = SimpleNamespace(collect=Config(), run=SimpleNamespace(seed=0, stages=["sample", "collect"]))
    with pytest.raises(UsageError, match=r"rlhf run .* sample"):
        collect.open_for_people(settings, tmp_path)
    folder = run_folder(tmp_path, [response_set(0, "a", "a")])
    with pytest.raises(DataError, match=r"sample.temperature"):
        collect.run(job(folder, Config()))
    with pytest.raises(ConfigError, match=r"add sample to run.stages"):
        collect.run(job(folder, Config(), sampled=False))
    with pytest.raises(ConfigError, match=r"data.preferences"):
        collect.run(job(folder, Config(judges="imported")))
    with pytest.raises(ValidationError, match="there are: Ada the expert"):
        Config(panel=["Adam"])
    with pytest.raises(ValidationError, match="panel has 2"):
        Config(judges="simulated", overlap=3)


def test_only_ties_are_no_preferences(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(0, "a", "b")])
    round_id = collect.open_for_people(job(folder, Config()).settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    ann = store.user("ann")
    [given] = store.lease(round_id, ann, 1)
    store.submit(ann, Answer("token-tie", given.id, "tie"))
    store.close()
    with pytest.raises(DataError, match="1 pairs came out even"):
        collect.run(job(folder, Config()))


def test_people_stand_in_the_records_under_pseudonyms_and_the_report_says_what_they_made(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(i, f"a{i}", f"b{i} longer") for i in range(8)])
    collect.open_for_people(job(folder, Config(overlap=2)).settings, folder)
    store = JudgementStore.open(folder / "judgements.db")
    for name, choice in (("Ann Example", "a"), ("Bob Example", "b")):
        user = store.user(name)
        for given in store.lease(1, user, 8):
            prefers_a = choice == "a" or int(given.responses[0].text[1]) < 6  # the second person disagrees twice
            best = next(r.id for r in given.responses if r.text.startswith("a" if prefers_a else "b"))
            store.submit(user, Answer(f"token-{given.id}", given.id, "response", best))
    store.close()
    collect.run(job(folder, Config(overlap=2)))
    text = (folder / "collect.partial" / "preferences.jsonl").read_text()
    assert "Example" not in text
    said = [vote["who"] for p in exported(folder) for vote in p.meta["judgements"]]
    assert len(said) == 16
    assert len(set(said)) == 2
    report = json.loads((folder / "collect.partial" / "preference_report.json").read_text())
    assert (report["judged"], report["ties"], report["agreement"]["value"]) == (6, 2, 0.75)
    assert report["longer_wins"]["hits"] == 0
    assert report["sentences"][0] == "6 decided pairs of 8 prompts count as 6 of equal weight"


# Simulated annotators


def test_the_panel_judges_every_pair_as_often_as_wanted_and_prefers_what_is_right(tmp_path: Path) -> None:
    sets = pocket_sets(80)
    folder = run_folder(tmp_path, sets)
    metrics = collect.run(job(folder, Config(judges="simulated", overlap=2)))
    assert metrics["judgements"] == 2 * metrics["pairs"] == 320
    assert metrics["annotators"] == 2
    assert metrics["agreement_pairs"] == 160
    assert metrics["agreement"] > 0.7
    assert 0.35 < metrics["left_share"] < 0.65
    right = {s.prompt.id: s.responses[0].text for s in sets}
    about_right = [p for p in exported(folder) if not p.tie and right[p.prompt.id] in (p.chosen, p.rejected)]
    assert sum(p.chosen == right[p.prompt.id] for p in about_right) / len(about_right) > 0.85
    again = collect.run(job(folder, Config(judges="simulated", overlap=2)))
    assert again == metrics


RUN = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.stages.test_collect import Config, collect, job, simulated
from rlhf_pipeline.store import JudgementStore
submit = JudgementStore.submit_many
def slow(self, *args, **kwargs):
    done = submit(self, *args, **kwargs)
    print("batch", flush=True)
    return done
JudgementStore.submit_many = slow
simulated._BATCH = 16
collect.run(job(Path({folder!r}), Config(judges="simulated", overlap=2)))
"""


def test_killed_and_run_again_it_makes_the_same_preferences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = pocket_sets(60)
    monkeypatch.setattr(simulated, "_BATCH", 16)
    whole = run_folder(tmp_path / "whole", sets)
    expected = collect.run(job(whole, Config(judges="simulated", overlap=2)))
    folder = run_folder(tmp_path / "killed", sets)
    for batches in (3, 2):
        code = RUN.format(root=str(ROOT), folder=str(folder))
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert child.stdout is not None
        for _ in range(batches):
            while (line := child.stdout.readline().strip()) != "batch":
                assert "judgements are there already" in line
        child.send_signal(signal.SIGKILL)
        child.wait()
    store = JudgementStore.open(folder / "judgements.db")
    made = store.progress(store.rounds()[0].id).judgements
    store.close()
    assert 5 * 16 <= made < expected["judgements"]
    assert collect.run(job(folder, Config(judges="simulated", overlap=2))) == expected
    assert exported(folder) == exported(whole)


def test_the_panel_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [response_set(i, "lorem ipsum", "dolor sit") for i in range(3)])
    with pytest.raises(ConfigError, match="can read none"):
        collect.run(job(folder, Config(judges="simulated")))


def test_rules_are_asked_and_written_with_the_votes_combined(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, pocket_sets(40))
    plain = Config(judges="simulated", overlap=2)
    metrics = collect.run(job(folder, plain))
    preferences = exported(folder)
    assert "rules" not in metrics
    assert not (folder / "collect.partial" / "rules.jsonl").exists()
    form = FormSection(rules=["Come to an end.", "Do not be rude."])
    asking = job(folder, plain.model_copy(update={"form": form}))
    found = collect.run(asking)["rules"]
    assert exported(folder) == preferences, "asking about rules changes no preference"
    records = [RuledResponse.from_json(row) for row in read_jsonl(folder / "collect.partial" / "rules.jsonl")]
    shown = {(p.prompt.id, text) for p in preferences for text in (p.chosen, p.rejected)}
    assert {(record.prompt.id, record.response) for record in records} == shown
    right = []
    for record in records:
        truth = broken_rules(record.prompt.messages, record.response, not record.cut) or frozenset()
        right += [
            votes.verdict == ("broken" if rule in truth else "kept")
            for rule, votes in record.rules.items()
            if votes is not None and votes.verdict != "divided"
        ]
    assert len(right) > 100
    assert sum(right) / len(right) > 0.95
    assert [(one["rule"], one["responses"]) for one in found] == [(rule, len(records)) for rule in form.rules]
    assert found[0]["broken"] > found[1]["broken"] >= 0, "a third of the responses was cut off"


def test_the_panel_refuses_rules_that_it_does_not_know(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, pocket_sets(3))
    config = Config(judges="simulated", form=FormSection(rules=["Come to an end.", "Be funny."]))
    with pytest.raises(ConfigError, match=r"do not know the rule 'Be funny\.'") as caught:
        collect.run(job(folder, config))
    assert "they know 'Do not be rude.'" in str(caught.value)


def test_reliable_people_count_for_more_by_rule(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, pocket_sets(60))
    panel = ["Ada the expert", "Dimitri who likes the left", "Finn the contrarian"]
    found = {}
    for rule in ("majority", "dawid_skene"):
        votes: Any = {"rule": rule}
        metrics = collect.run(job(folder, Config(judges="simulated", overlap=3, panel=panel, votes=votes)))
        leads = [
            (gold(p.prompt.messages, p.chosen, not p.chosen_cut) or UNREADABLE)
            - (gold(p.prompt.messages, p.rejected, not p.rejected_cut) or UNREADABLE)
            for p in exported(folder)
        ]
        found[rule] = sum((lead > 0) - (lead < 0) for lead in leads) / len(leads)
    assert found["dawid_skene"] > found["majority"] + 0.1
    assert metrics["raters"][panel[0]]["reliability"] > 0.8 > 0.4 > metrics["raters"][panel[2]]["reliability"]
    assert metrics["raters"][panel[1]]["left"] > 0.6


def test_another_seed_asks_the_panel_anew(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, pocket_sets(10))
    for seed in (0, 1):
        collect.run(job(folder, Config(judges="simulated"), seed=seed))
    store = JudgementStore.open(folder / "judgements.db")
    assert [len(store.judgements(r.id)) for r in store.rounds()] == [20, 20]
    store.close()


# Imports


def preferences_file(tmp_path: Path, rows: list[Preference]) -> Path:
    path = tmp_path / "ready.jsonl"
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return path


def test_ready_made_preferences_go_through_the_store_and_come_out_the_same(tmp_path: Path) -> None:
    rows = [
        Preference(prompt(1), "good", "bad", source="paper"),
        Preference(prompt(2), "good", "bad", probability=0.7, margin=1.5),
        Preference(prompt(3), "one", "two"),
        Preference(prompt(3), "one", "two"),
        Preference(prompt(3), "two", "one"),
        Preference(prompt(4), "this", "that"),
        Preference(prompt(4), "that", "this"),
    ]
    path = preferences_file(tmp_path, rows)
    for _ in range(2):
        metrics = collect.run(job(tmp_path, Config(judges="imported"), preferences=path, sampled=False))
    assert (metrics["judgements"], metrics["pairs"], metrics["preferences"], metrics["ties"]) == (7, 4, 3, 1)
    out = exported(tmp_path)
    assert [(p.chosen, p.rejected, p.probability, p.judgements) for p in out] == [
        ("good", "bad", 1.0, 1),
        ("good", "bad", pytest.approx(0.7), 1),
        ("one", "two", pytest.approx(2 / 3), 3),
        ("this", "that", 0.5, 2),
    ]
    assert [p.tie for p in out] == [False, False, False, True]
    assert (out[0].source, out[1].margin) == ("paper", 1.5)


def test_an_interrupted_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = preferences_file(tmp_path, [Preference(prompt(i), "good", "bad") for i in range(30)])
    recount, calls = into_store.recount, []

    def fails_in_the_third(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        recount(*args)

    monkeypatch.setattr(into_store, "recount", fails_in_the_third)
    monkeypatch.setattr(into_store, "chunks", lambda rows: [rows[i : i + 8] for i in range(0, len(rows), 8)])
    with pytest.raises(KeyboardInterrupt):
        collect.run(job(tmp_path, Config(judges="imported"), preferences=path, sampled=False))
    assert collect.run(job(tmp_path, Config(judges="imported"), preferences=path, sampled=False))["judgements"] == 30
    assert [p.chosen for p in exported(tmp_path)] == ["good"] * 30
