"""``rlhf score``: every kind of file, a line for each row, and the scores of the reward model itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_pipeline.records import Candidates, Message, Prompt
from rlhf_pipeline.reward_models import Explained, Scorer
from stages import score
from tests import stage_jobs
from tests.command_line import rlhf, write_config
from tests.rlhf_pipeline.test_reward_models import finished

PAIRS = stage_jobs.preferences(4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has a reward model and nothing else."""
    from stages import settings

    folder = tmp_path_factory.mktemp("score")
    config = write_config(folder)
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(config.read_text())
    finished(settings.load(config).model, folder / "run" / "reward")
    return folder / "run"


def scored(run: Path, file: Path, *arguments: str) -> tuple[list[dict], str]:
    made = rlhf("score", run, file, *arguments)
    assert made.code == 0, made.err
    return [json.loads(line) for line in made.out.splitlines()], made.err


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_of_ours_and_of_others(run, tmp_path):
    rows, said = scored(run, lines(tmp_path / "p.jsonl", [one.to_json() for one in PAIRS]))
    expected = Scorer.open(run / "reward").score(
        [one.prompt.messages for one in PAIRS for _ in "ab"], [t for one in PAIRS for t in (one.chosen, one.rejected)]
    )
    assert [s for row in rows for s in (row["chosen_score"], row["rejected_score"])] == pytest.approx(
        expected, abs=1e-6
    )
    assert all(row["margin"] == row["chosen_score"] - row["rejected_score"] for row in rows)
    assert "8 responses scored" in said
    assert "of 4 pairs" in said
    human = [
        {
            "chosen": f"\n\nHuman: Hello {i}\n\nAssistant: Good day.",
            "rejected": f"\n\nHuman: Hello {i}\n\nAssistant: No.",
        }
        for i in range(2)
    ]
    rows, _ = scored(run, lines(tmp_path / "hh.jsonl", human))
    assert rows[1]["prompt"] == [{"role": "user", "content": "Hello 1"}]
    assert rows[1]["chosen"] == "Good day."


def test_what_cannot_be_scored_is_named(run, tmp_path):
    pairs = [one.to_json() for one in PAIRS]
    long = lines(tmp_path / "long.jsonl", [*pairs, {**pairs[0], "rejected": "word " * 20_000}])
    made = rlhf("score", run, long)
    assert made.code == 1
    assert "1 of 10 responses are, with their prompts, longer than the" in made.err
    assert "response 10 of 10:" in made.err
    assert not made.out
    made = rlhf("score", run, lines(tmp_path / "p.jsonl", pairs), "--format", "foo")
    assert made.code == 2
    assert "--format" in made.err
    assert "preference" in made.err, "the formats that there are"
    assert "this was not foreseen" not in made.err
    made = rlhf("score", run, lines(tmp_path / "p.jsonl", pairs), "--on-bad-rows", "skip")
    assert made.code == 2
    assert "--on-bad-rows: Input should be 'error' or 'drop'" in made.err


def test_bad_rows_are_left_out_on_request(run, tmp_path):
    file = lines(tmp_path / "p.jsonl", [PAIRS[0].to_json(), {"prompt": "Hello?"}])
    made = rlhf("score", run, file)
    assert made.code == 1
    assert "on_bad_rows: drop" in made.err
    rows, said = scored(run, file, "--on-bad-rows", "drop")
    assert len(rows) == 1
    assert "1 responses from 2 rows" in said
    assert "left out 1: 1 missing column" in said


def test_a_reward_model_that_is_not_the_runs_any_more(run, tmp_path):
    _, said = scored(run, lines(tmp_path / "p.jsonl", [one.to_json() for one in PAIRS]))
    assert "note: the reward model is stale" in said, "the fixture has nothing before it"


def test_ties_are_scored_too(run, tmp_path):
    tie = {"prompt": "Hello?", "response_a": "Yes.", "response_b": "No.", "probability_b_preferred": 0.5}
    rows, _ = scored(run, lines(tmp_path / "t.jsonl", [tie]))
    assert {"chosen_score", "rejected_score"} <= rows[0].keys()


def test_single_and_several_responses(run, tmp_path):
    single = [{"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]}]
    [row], _ = scored(run, lines(tmp_path / "m.jsonl", single))
    question = [(Message("user", "Hello?"),)]
    [expected] = Scorer.open(str(run / "reward")).score(question, ["Good day."])
    assert row["score"] == pytest.approx(expected, rel=1e-5)
    sampled = {
        "prompt": [{"role": "user", "content": "Hello?"}],
        "responses": [{"text": "Good day.", "ended": True}, {"text": "Good day.", "ended": False}, "No."],
    }
    [row], _ = scored(run, lines(tmp_path / "s.jsonl", [sampled]))
    assert row["responses"] == ["Good day.", "Good day.", "No."]
    assert row["scores"][0] == pytest.approx(expected, rel=1e-5)
    assert row["scores"][1] == pytest.approx(
        Scorer.open(run / "reward").score(question, ["Good day."], ended=[False])[0], abs=1e-6
    )
    assert row["scores"][0] != row["scores"][1], "one was cut off"


def test_into_a_file(run, tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"instruction": "Hello?", "output": "Good day."}])
    made = rlhf("score", run, file, "--out", tmp_path / "scores.jsonl")
    assert (made.code, made.out) == (0, "")
    assert json.loads((tmp_path / "scores.jsonl").read_text())["response"] == "Good day."


def test_what_cannot_be_scored(run, tmp_path):
    prompts = lines(tmp_path / "prompts.jsonl", [{"prompt": "Hello?"}])
    made = rlhf("score", run, prompts)
    assert made.code == 1
    assert "no response: there is nothing to score" in made.err
    assert rlhf("score", run, tmp_path / "none.jsonl").code == 1
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text((run / "config.yaml").read_text())
    made = rlhf("score", tmp_path / "run", prompts)
    assert made.code == 2
    assert "no reward model yet" in made.err
    assert "Traceback" not in made.err


def test_rules_stand_beside_every_score() -> None:
    """Of a reward model that knows rules; which it is, is in the tests of the reward stage."""
    prompt = Prompt((Message("user", "Hello?"),))
    kept, broken = Explained(1.0, 1.5, {"be kind": 0.25}), Explained(-1.0, 1.0, {"be kind": 0.75})
    pair = score._scored(Candidates(prompt, ("Good day.", "No."), True), [kept, broken])
    assert (pair["chosen_broken"], pair["rejected_broken"]) == ({"be kind": 0.25}, {"be kind": 0.75})
    assert (pair["chosen_score"], pair["rejected_score"], pair["margin"]) == (1.0, -1.0, 2.0)
    single = score._scored(Candidates(prompt, ("No.",), False), [broken])
    assert (single["score"], single["broken"]) == (-1.0, {"be kind": 0.75})
    several = score._scored(Candidates(prompt, ("Good day.", "No."), False), [kept, broken])
    assert (several["scores"], several["broken"]) == ([1.0, -1.0], [{"be kind": 0.25}, {"be kind": 0.75}])
    said = list(score._summary([Candidates(prompt, ("Good day.", "No."), True)], [[kept, broken]]))
    assert "rule 'be kind': broken, more likely than not, in 1 of 2 responses" in said
    without = score._scored(Candidates(prompt, ("No.",), False), [Explained(2.0, 2.0, {})])
    assert without.keys() == {"prompt", "response", "score"}
