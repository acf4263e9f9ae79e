"""Labels without judges: by functions and by a reward model, of pairs that nobody was asked about, always marked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_pipeline.errors import ConfigError, DataError
from rlhf_pipeline.label_model import Quality
from rlhf_pipeline.records import Preference, read_jsonl
from rlhf_pipeline.reliability import proportion
from stages import collect, labels, rounds
from stages.collect import Config
from tests.stages.test_collect import exported, job, pocket_sets, preferences_file, run_folder

FUNCTIONS = """
def longer(prompt, a, b):
    return (len(a) > len(b)) - (len(a) < len(b))

def ends(prompt, a, b):
    return (a[-1] in ".!?") - (b[-1] in ".!?")

def shares(prompt, a, b):
    words = set(prompt[-1]["content"].lower().split())
    first, second = (len(words & set(text.lower().split())) for text in (a, b))
    return (first > second) - (first < second)

def silent(prompt, a, b):
    return 0

def broken(prompt, a, b):
    return "a"

def first(prompt, a, b):
    return 1

def truth(prompt, a, b):
    return len(a) > len(b)

def ends_it(prompt, a, b):
    raise SystemExit(0)
"""


@pytest.fixture
def functions(tmp_path: Path) -> str:
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return str(path)


def section(file: str, *names: str, **rest: Any) -> Any:
    return {"functions": [{"source": file, "function": name} for name in names], **rest}


def test_functions_label_what_nobody_judges(tmp_path: Path, functions: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path, pocket_sets(60))
    weak = section(functions, "longer", "ends", "shares")
    config = Config(judges="simulated", pairs_per_prompt=1, weak=weak)
    metrics = collect.run(job(folder, config))
    judged = [p for p in exported(folder) if not p.weak]
    labelled = [p for p in exported(folder) if p.weak]
    collect.run(job(folder, Config(judges="simulated", pairs_per_prompt=1)))
    assert judged == exported(folder)  # what was judged stays what it is
    assert (metrics["pairs"], metrics["preferences"] + metrics["ties"]) == (60, len(judged))
    assert {p.source for p in labelled} == {"weak"}
    assert 100 < len(labelled) < 120  # of three pairs one is judged, and some prompts are held out
    assert all(p.judgements == 0 and p.meta["functions"] and p.probability > 0.5 for p in labelled)
    both = {(p.prompt.id, frozenset((p.chosen, p.rejected))) for p in judged}
    assert not both & {(p.prompt.id, frozenset((p.chosen, p.rejected))) for p in labelled}
    said = capsys.readouterr().out
    assert "functions.longer votes on" in said
    assert "judges agree with it on" in said
    assert "the functions err together" in said  # longer and ends both see what was cut off
    assert f"{len(labelled)} pairs were labelled by no judge (weak)" in said
    # a response about something else shares fewer words, one that was cut off is shorter and does not end
    assert sum("functions.ends" in p.meta["functions"] for p in labelled) > 30


def test_at_most_so_many_and_none_where_all_abstain(tmp_path: Path, functions: str) -> None:
    folder = run_folder(tmp_path, pocket_sets(20))
    collect.run(job(folder, Config(judges="simulated", weak=section(functions, "longer", max_pairs=5))))
    assert 0 < sum(p.weak for p in exported(folder)) <= 5
    collect.run(job(folder, Config(judges="simulated", weak=section(functions, "silent"))))
    assert not any(p.weak for p in exported(folder))


def test_what_cannot_work_is_said(tmp_path: Path, functions: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A function that looks at places alone is right by chance, however often judges are asked about it."""
    folder = run_folder(tmp_path, pocket_sets(100))
    weak = section(functions, "first", "silent", "longer")
    collect.run(job(folder, Config(judges="simulated", pairs_per_prompt=1, weak=weak)))
    said = capsys.readouterr().out
    assert "and prefers the first response whatever the two are" in said
    assert said.count("whatever the two are") == 1
    [agreed] = re.findall(r"functions.first .*judges agree with it on (\d+)%", said)
    assert 30 < int(agreed) < 70
    assert "functions.silent abstains on every pair that nobody judges, and so labels none" in said


@pytest.mark.parametrize(("votes", "told"), [([-1] * 9, False), ([-1] * 10, True), ([1] * 99 + [-1], False)])
def test_few_votes_for_one_place_say_nothing(votes: list[int], told: bool) -> None:
    said = labels._of_function("f", Quality(coverage=0.5, accuracy=0.7), proportion([]), votes)
    assert ("prefers the second response whatever" in said) == told


def test_mistakes_are_named(tmp_path: Path, functions: str) -> None:
    folder = run_folder(tmp_path, pocket_sets(5))
    with pytest.raises(ConfigError, match="has no function absent") as absent:
        collect.run(job(folder, Config(judges="simulated", weak=section(functions, "absent"))))
    assert "collect.weak.functions" in str(absent.value)
    with pytest.raises(DataError, match=r"functions.broken said 'a'"):
        collect.run(job(folder, Config(judges="simulated", weak=section(functions, "broken"))))
    with pytest.raises(DataError, match=r"functions.truth said (True|False)"):
        collect.run(job(folder, Config(judges="simulated", weak=section(functions, "truth"))))
    with pytest.raises(DataError, match=r"functions.ends_it failed: .*SystemExit"):
        collect.run(job(folder, Config(judges="simulated", weak=section(functions, "ends_it"))))
    with pytest.raises(ValueError, match="one function is named twice"):
        Config(judges="simulated", weak=section(functions, "longer", "ends", "longer"))
    with pytest.raises(ConfigError, match="is no folder"):
        collect.run(job(folder, Config(judges="simulated", weak={"reward": "nowhere"})))  # type: ignore[arg-type]
    path = preferences_file(tmp_path, [Preference(p.prompt, "x", "y") for p in pocket_sets(3)])
    config = Config(judges="imported", weak=section(functions, "longer"))
    with pytest.raises(ConfigError, match="samples none"):
        collect.run(job(folder, config, preferences=path, sampled=False))


def test_a_reward_model_labels_what_it_is_sure_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_length(settings: Any, rows: Any) -> dict[int, float]:
        """Nine characters more are even odds of e; what was cut off has nothing."""
        assert settings.collect.uncertainty_from == str(tmp_path / "judge")
        return {r.id: len(r.text) / 9 if r.finish == "eos" else -100.0 for row in rows for r in row.responses}

    monkeypatch.setattr(rounds, "scores_of", by_length)
    folder = run_folder(tmp_path, pocket_sets(30))
    (tmp_path / "judge").mkdir()
    weak: Any = {"reward": str(tmp_path / "judge"), "threshold": 0.95}
    given = job(folder, Config(judges="simulated", pairs_per_prompt=1, weak=weak))
    given.settings.model_copy = lambda update: SimpleNamespace(**{**vars(given.settings), **update})  # type: ignore[method-assign, assignment]
    collect.run(given)
    added = [p for p in exported(folder) if p.weak]
    assert len(added) > 20
    assert {p.source for p in added} == {"self_training"}
    assert all(p.probability >= 0.95 and p.weight == 0.5 for p in added)
    assert all(p.rejected_cut or len(p.chosen) > len(p.rejected) for p in added)
    assert not any(p.chosen_cut and not p.rejected_cut for p in added)
    report = json.loads((folder / "collect.partial" / "preference_report.json").read_text())
    assert report["weak"] == {"self_training": len(added)}
    assert report["judged"] + report["ties"] == 30


def test_what_is_read_back_is_still_marked(tmp_path: Path, functions: str) -> None:
    folder = run_folder(tmp_path, pocket_sets(10))
    collect.run(job(folder, Config(judges="simulated", weak=section(functions, "longer"))))
    rows = read_jsonl(folder / "collect.partial" / "preferences.jsonl")
    assert {row["weak"] for row in rows if row["source"] == "weak"} == {True}
    assert {row["weak"] for row in rows if row["source"] == "simulated"} == {False}
