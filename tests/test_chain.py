"""The whole chain through the command line at toy size: the demo, imported preferences, other models, every recipe."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rlhf_pipeline.artifacts import open_artifact
from stages import NAMES, settings
from tests import tiny_models
from tests.command_line import ROOT, Result, complete_stages, merged, rlhf

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
SMALL_STEPS = {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "max_length": 200}
SMALL: dict[str, Any] = {
    "sft": SMALL_STEPS,
    "reward": SMALL_STEPS,
    "dpo": SMALL_STEPS,
    "sample": {"prompts": 10, "held_out_prompts": 6, "responses": 2, "max_new_tokens": 8},
    "ppo": {"iterations": 2, "rollout_batch": 4, "max_new_tokens": 8, "max_prompt_length": 200},
    "evaluate": {"prompts": 6, "max_new_tokens": 8},
}
MEASURES = {"win_rate", "win_rate_low", "win_rate_high", "gold", "score", "kl", "length", "ended", "prompts"}


def overrides(values: dict[str, Any], prefix: str = "") -> list[str]:
    """``--set`` arguments that give these values."""
    given: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict) and "path" not in value and "enable_thinking" not in value:
            given += overrides(value, f"{prefix}{key}.")
        else:
            flow = yaml.safe_dump(value, default_flow_style=True, width=10_000)
            given += ["--set", f"{prefix}{key}={flow.removesuffix('...' + chr(10)).strip()}"]
    return given


def run_recipe(name: str, run: Path, changes: dict[str, Any], *stages: str) -> Result:
    """Run a recipe of ours at toy size."""
    values = merged(merged(SMALL, {"run": {"folder": str(run), "device": "cpu"}}), changes)
    return rlhf("run", ROOT / "configs" / name, *stages, *overrides(values))


def digests(run: Path) -> dict[str, str]:
    return {name: open_artifact(run / name).digest for name in complete_stages(run)}


# The demo

DEMO: dict[str, Any] = {
    "data": {
        "demonstrations": {"path": "pocket", "limit": 40},
        "prompts": {"path": "pocket", "limit": 40},
        "held_out": 0.25,
    },
    "collect": {"judges": "simulated"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, run to its end; tests that change something work on a copy."""
    run = tmp_path_factory.mktemp("demo") / "run"
    made = run_recipe("demo.yaml", run, DEMO)
    assert (made.code, made.err) == (0, "")
    assert made.out.index("policy ") < made.out.index("report:") < made.out.index("judge by hand:  rlhf annotate")
    return run


@pytest.fixture
def demo(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.slow
def test_the_demo_completes_every_stage(finished: Path) -> None:
    assert rlhf("status", finished, "--json").states() == dict.fromkeys(NAMES, "complete")
    assert complete_stages(finished) == set(NAMES)
    assert not list(finished.glob("*.partial"))
    assert not [p for p in finished.rglob("*") if p.name in ("checkpoints", "fingerprint.json")]


@pytest.mark.slow
def test_the_demo_measures_every_policy(finished: Path) -> None:
    metrics = json.loads((finished / "evaluate" / "metrics.json").read_text())
    assert set(metrics["policies"]) == {"base", "sft", "dpo", "ppo"}
    for name, row in metrics["policies"].items():
        assert row.keys() >= MEASURES
        assert row["prompts"] == 6
        compared = name != "sft"
        assert (row["win_rate"] is not None) == compared
        assert isinstance(row["gold"], float | None)
        assert all(isinstance(row[key], float) for key in ("score", "kl", "length", "ended"))
        if compared and row["win_rate_low"] is not None:
            assert 0 <= row["win_rate_low"] <= row["win_rate"] <= row["win_rate_high"] <= 1
    assert metrics["policies"]["sft"]["kl"] == 0
    assert metrics["judge"] == "gold"


@pytest.mark.slow
def test_the_report_asks_nobody_for_anything(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for policy in ("SFT", "DPO", "PPO"):
        assert policy in page
    asking = r"""(?:src|href|action|poster|data|srcset)\s*=\s*["']?\s*(?!\#|data:)[^"'\s>]+|url\(\s*["']?(?!data:|\#)"""
    assert not re.findall(asking, re.sub(r"data-[\w-]+", "", page))
    assert not re.search(r"@import|<script[^>]+src|<link|<iframe|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", page)


@pytest.mark.slow
def test_a_second_run_does_nothing(demo: Path) -> None:
    before = digests(demo)
    again = rlhf("run", demo, "--set", f"run.folder={demo}")
    assert again.code == 0, again.err
    states = [line.split(" (")[0] for line in again.out.splitlines()[: len(NAMES)]]  # four responses raise an alarm
    assert states == [f"{name}: complete" for name in NAMES]
    assert digests(demo) == before
    assert not (demo / "replaced").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "made_anew"),
    [
        ("dpo.beta=0.77", {"dpo", "evaluate"}),
        ("collect.max_pairs=9", {"collect", "reward", "dpo", "ppo", "evaluate"}),
        ("evaluate.temperature=0", {"evaluate"}),
        ("run.tracking=none", set()),
    ],
)
def test_a_changed_setting_makes_anew_what_follows(change: str, made_anew: set[str], demo: Path) -> None:
    before = digests(demo)
    alone = ["--set", "run.parallel=1"]  # the demo itself was made by two processes, the second of which starts slowly
    again = rlhf("run", demo, "--set", f"run.folder={demo}", *alone, "--set", change)
    assert again.code == 0, again.err
    after = digests(demo)
    assert {name for name in NAMES if after[name] != before[name]} == made_anew
    assert {path.name for path in demo.glob("replaced/*")} == {f"{name}-1" for name in made_anew}
    if made_anew:
        assert change.split("=")[0] in again.out, "it says why"


@pytest.mark.slow
def test_status_says_what_a_change_would_make_stale(demo: Path) -> None:
    kept = (demo / "config.yaml").read_text()
    (demo / "config.yaml").write_text(re.sub(r"beta: [\d.]+", "beta: 0.77", kept))
    shown = rlhf("status", demo, "--json")
    states = shown.states()
    assert {name for name, state in states.items() if state == "stale"} == {"dpo", "evaluate"}
    (reason,) = (r for r in json.loads(shown.out)["stages"]["dpo"]["reasons"] if r.startswith("dpo.beta: "))
    assert reason.endswith("→ 0.77")


@pytest.mark.slow
def test_people_are_waited_for(demo: Path) -> None:
    asked = rlhf("run", demo, "--set", f"run.folder={demo}", "--set", "collect.judges=people")
    assert asked.code == 3
    assert re.search(r"\d+ of \d+ judgements are still needed", asked.err)
    assert f"rlhf annotate {demo}" in asked.err
    assert f"rlhf run {demo}" in asked.err
    assert "error" not in asked.err
    states = rlhf("status", demo, "--json").states()
    assert (states["sample"], states["collect"]) == ("complete", "waiting")
    said = re.search(r"rlhf run (\S+)", asked.err)
    assert said
    assert rlhf("run", said[1]).code == 3, "the very command that it names"


@pytest.mark.slow
@pytest.mark.parametrize("policies", [[], ["base"], ["sft", "dpo", "ppo"]], ids=str)
def test_chat_answers(policies: list[str], finished: Path) -> None:
    answered = rlhf("chat", finished, *policies, "--once", "How do I water a fern?")
    assert (answered.code, answered.err) == (0, "")
    assert answered.out.strip()
    assert all(f"{name}:\n" in answered.out for name in policies if len(policies) > 1)


@pytest.mark.slow
def test_the_report_can_be_made_again(demo: Path) -> None:
    (demo / "report.html").unlink()
    made = rlhf("report", demo)
    assert (made.code, made.out.strip()) == (0, str(demo / "report.html"))
    assert (demo / "report.html").stat().st_size > 10_000


# Imported preferences, other architectures, full fine-tuning, half precision

_ASKED = ["the garden", "a lamp", "the bread", "my letter", "an old chair", "the window", "a bicycle", "the soup"]


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file in the form of HH-RLHF; text that is awkward to store stands in it too."""
    rows = []
    for i in range(48):
        asked = f"\n\nHuman: How do I look after {_ASKED[i % 8]} number {i}?\n\nAssistant:"
        if i % 3 == 0:
            asked = f"\n\nHuman: Hello {i}\n\nAssistant: Hello, my friend.{asked}"
        odd = {5: " 🙂 naïve\u2028line", 6: " <|im_end|> </s>", 7: " \ud83d half a sign", 8: " nul \0 in it"}.get(i, "")
        rows.append({"chosen": f"{asked} Water it early.{odd}", "rejected": f"{asked} Go away.{' Go away.' * (i % 3)}"})
    path = tmp_path_factory.mktemp("data") / "hh.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FULL: dict[str, Any] = {"lora": None, "learning_rate": 1e-5}
CHAINS = {
    "llama": ("llama", {}),
    "gemma": ("gemma", {}),
    "gpt2": ("gpt2", {}),
    "mixtral in bfloat16": ("mixtral", {"model": {"dtype": "bfloat16"}}),
    "full SFT": ("llama", {"sft": FULL}),
    "full reward model": ("llama", {"reward": FULL}),
    "everything full": ("qwen3", {"sft": FULL, "reward": FULL, "dpo": FULL}),
    "full SFT in bfloat16": ("llama", {"sft": FULL, "model": {"dtype": "bfloat16"}}),
    "full reward model in bfloat16": ("llama", {"reward": FULL, "model": {"dtype": "bfloat16"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_imported_preferences_from_end_to_end(name: str, transcripts: Path, tmp_path: Path) -> None:
    family, changes = CHAINS[name]
    model = tiny_models.make(family, tmp_path / "model").model_dump(exclude_defaults=True)
    data = {"preferences": {"path": str(transcripts), "on_bad_rows": "drop"}, "held_out": 0.3}
    run = tmp_path / "run"
    result = run_recipe("hh.yaml", run, merged({"model": model, "data": data}, changes))
    assert (result.code, result.err) == (0, ""), result.out
    assert "rlhf annotate" not in result.out, "there is nothing to judge by hand"
    stages = set(NAMES) - {"sample"}
    assert complete_stages(run) == stages
    for stage in ("sft", "reward", "dpo"):
        full = changes.get(stage) is FULL
        assert (run / stage / "model").is_dir() == full
        assert (run / stage / "adapter").is_dir() != full
    assert (run / "ppo" / "adapter").is_dir()
    reward = open_artifact(run / "reward").manifest.metrics
    assert 0 <= reward["accuracy_low"] <= reward["accuracy"] <= reward["accuracy_high"] <= 1
    assert reward["length_baseline"] >= 0.5
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert set(metrics["policies"]) == {"base", "sft", "dpo", "ppo"}
    assert metrics["judge"] == "reward_model"
    for policy in ("ppo", "dpo", "sft"):
        answered = rlhf("chat", run, policy, "--once", "How do I look after a lamp?")
        assert (answered.code, answered.err) == (0, "")
    weights = [load_file(p) for p in run.glob("*/adapter/adapter_model.safetensors")]
    assert all(tensor.isfinite().all() for file in weights for tensor in file.values())


# The recipes

FAMILY_OF = {
    "demo.yaml": None,  # the pocket model itself
    "hh.yaml": "llama",
    "smollm2-135m.yaml": "llama",
    "qwen3-0.6b.yaml": "qwen3",
    "llama-3.1-8b-qlora.yaml": "llama",
}
DATA_OF: dict[str, list[dict[str, Any]]] = {
    "smollm2-135m.yaml": [{"instruction": f"Name {t}.", "input": "", "output": f"It is {t}."} for t in _ASKED],
    "qwen3-0.6b.yaml": [
        {"conversations": [{"from": "human", "value": f"What is {t}?"}, {"from": "gpt", "value": f"{t}."}]}
        for t in _ASKED
    ],
    "llama-3.1-8b-qlora.yaml": [
        {"messages": [{"role": "user", "content": f"And {t}?"}, {"role": "assistant", "content": f"{t}!"}]}
        for t in _ASKED
    ],
}


def test_every_recipe_is_proven_here() -> None:
    assert {path.name for path in RECIPES} == set(FAMILY_OF)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_loads_and_opens_with_what_it_needs(path: Path) -> None:
    loaded = settings.load(path)
    assert loaded.run.folder.startswith("runs/")
    opening = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("hardware", "time", "data", f"rlhf run configs/{path.name}"):
        assert word in opening


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FAMILY_OF)
def test_every_recipe_runs_on_a_tiny_model_of_its_family(recipe: str, transcripts: Path, tmp_path: Path) -> None:
    family = FAMILY_OF[recipe]
    changes: dict[str, Any] = {"model": {}}
    if family:
        tiny_models.make(family, tmp_path / "model")
        changes["model"] = {"name": str(tmp_path / "model"), "quantization": "none"}
    if recipe in DATA_OF:
        path = tmp_path / ("rows.json" if "smollm" in recipe else "rows.jsonl")
        lines = [json.dumps(row) for row in DATA_OF[recipe]]
        path.write_text(f"[{','.join(lines)}]" if path.suffix == ".json" else "\n".join(lines))
        changes["data"] = {"demonstrations": {"path": str(path)}}
    elif recipe == "hh.yaml":
        changes["data"] = {"preferences": {"path": str(transcripts), "on_bad_rows": "drop"}}
    else:
        changes["data"] = DEMO["data"]
    result = run_recipe(recipe, tmp_path / "run", changes, "sft")
    assert (result.code, result.err) == (0, ""), result.out
    assert complete_stages(tmp_path / "run") == {"sft"}
    made = settings.load(tmp_path / "run")
    original = settings.load(ROOT / "configs" / recipe)
    assert made.model.chat_template == original.model.chat_template
    assert made.model.template_arguments == original.model.template_arguments
