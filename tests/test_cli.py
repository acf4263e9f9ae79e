"""The command line itself: help without heavy imports, exit codes, every key explained, any terminal."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_pipeline
from rlhf_pipeline.config import describe
from rlhf_pipeline.errors import WaitingForPeople
from stages.__main__ import app
from stages.settings import Settings
from tests.command_line import ROOT, program, rlhf, write_config

COMMANDS = sorted(str(c.name or c.callback.__name__) for c in app.registered_commands if c.callback)
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "gradio", "sqlalchemy", "numpy", "pandas", "fastapi"}
ASK_ALL = """
import sys
from stages.__main__ import main
for command in {commands!r}:
    sys.argv = ["rlhf", *command]
    try:
        main()
    except SystemExit as leaving:
        assert leaving.code in (0, None), (command, leaving.code)
heavy = {heavy!r} & set(sys.modules)
assert not heavy, heavy
"""


def loads_nothing_heavy(*commands: list[str]) -> str:
    """Give the commands to one fresh program, which then has none of the large libraries in memory; its output."""
    code = ASK_ALL.format(commands=commands, heavy=HEAVY)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_help_loads_nothing_heavy() -> None:
    out = loads_nothing_heavy(["--help"], *([name, "--help"] for name in COMMANDS))
    for name in COMMANDS:
        assert f"rlhf {name}" in out, f"{name} --help shows no usage"


def test_looking_at_a_run_loads_nothing_heavy(tmp_path: Path) -> None:
    settings = write_config(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copy(settings, tmp_path / "run" / "config.yaml")
    run = str(tmp_path / "run")
    out = loads_nothing_heavy(["help-config"], ["status", run], ["status", run, "--json"])
    assert "sft        missing" in out


def test_the_version() -> None:
    out = loads_nothing_heavy(["--version"])
    assert out == f"rlhf-pipeline {rlhf_pipeline.__version__} (Python {platform.python_version()})\n"


def test_every_command_says_what_it_does() -> None:
    shown = rlhf("--help")
    assert shown.code == 0
    assert {"run", "status", "annotate", "chat", "report", "doctor", "help-config"} <= set(COMMANDS)
    for name in COMMANDS:
        assert re.search(rf"^\W*{name}\s+[A-Z]\w+", shown.out, re.MULTILINE), f"{name} has no description"


def test_the_script_and_the_module_are_the_same_program() -> None:
    script = Path(sys.executable).parent / "rlhf"
    assert script.is_file(), "install the package: make quick sets up .venv"
    by_script = subprocess.run([script, "help-config", "run"], capture_output=True, text=True, timeout=100)
    assert by_script.returncode == 0
    assert by_script.stdout == program("help-config", "run").out


def test_help_config_explains_every_key() -> None:
    shown = rlhf("help-config").out
    lines = shown.splitlines()
    for key, default, text in describe(Settings):
        place = lines.index(f"{key} = {default}")
        assert lines[place + 1].strip() == " ".join(text.split())
    only = rlhf("help-config", "ppo").out
    assert "ppo.kl_coef = " in only
    assert "sft." not in only
    inner = rlhf("help-config", "sft.lora").out
    assert [line.split(" = ")[0] for line in inner.splitlines() if " = " in line][:2] == ["sft.lora", "sft.lora.rank"]
    assert "sft.epochs" not in inner
    assert rlhf("help-config", "ppo.kl_coef").out.startswith("ppo.kl_coef = ")
    wrong = rlhf("help-config", "sft.lor")
    assert wrong.code == 2
    assert "no section or key 'sft.lor'" in wrong.err


def test_the_defaults_shown_are_those_used(tmp_path: Path) -> None:
    """What help-config prints as a default can be set, and changes nothing."""
    from stages import settings

    path = write_config(tmp_path)
    plain = settings.load(path)
    shown = [row for row in describe(Settings) if row[0].startswith("dpo.") and row[0].count(".") == 1]
    given = [f"{key}={default}" for key, default, _ in shown if default not in ("…", "required")]
    changed = settings.load(path, [one for one in given if one.split("=")[0] not in _toy_keys(path)])
    assert changed == plain


def _toy_keys(path: Path) -> set[str]:
    import yaml

    values = yaml.safe_load(path.read_text())
    return {f"{section}.{key}" for section, keys in values.items() for key in keys}


def test_a_run_folder_that_was_moved_is_the_run(tmp_path: Path) -> None:
    settings = write_config(tmp_path, {"run": {"stages": ["sft"]}})
    assert rlhf("run", settings).code == 0
    moved = tmp_path / "elsewhere: a name"
    (tmp_path / "run").rename(moved)
    again = rlhf("run", moved)
    assert (again.code, "sft: complete" in again.out) == (0, True), again.err
    assert not (tmp_path / "run").exists()


def test_exit_codes_of_the_doctor(tmp_path: Path) -> None:
    settings = write_config(tmp_path)
    sound = rlhf("doctor", settings)
    assert (sound.code, sound.err) == (0, "")
    assert "nothing found that would stop the run" in sound.out
    ill = rlhf("doctor", settings, "--set", "model.name=./nowhere", "--set", "data.demonstrations=rows.jsonl")
    assert ill.code == 1
    assert "rows.jsonl: there is no such file" in ill.out
    assert "nowhere: there is no such folder" in ill.out
    assert re.search(r"^\d of these would stop the run", ill.out, re.MULTILINE)
    assert "Traceback" not in ill.out + ill.err
    assert not (tmp_path / "run").exists(), "the doctor only looks"


def test_a_run_does_not_label_for_itself(tmp_path: Path) -> None:
    for teacher, refused in (("run", True), ("other", False)):
        changes = {"collect": {"weak": {"reward": str(tmp_path / teacher / "reward")}}}
        made = rlhf("doctor", write_config(tmp_path, changes))
        assert ("this run's own reward model" in made.err) == refused, made.err


def test_a_key_that_only_the_stage_finds_wrong_is_named_whole(tmp_path: Path) -> None:
    made = rlhf("run", write_config(tmp_path), "sft", "--set", "sft.lora.top_layers=9")
    assert made.code == 2
    assert "sft.lora.top_layers: the model has only 4 layers" in made.err


def test_the_doctor_names_a_file_that_stands_for_several_once() -> None:
    shown = rlhf("doctor", ROOT / "configs" / "hh.yaml", "--set", "data.preferences.path=none.jsonl").out
    assert shown.count("none.jsonl: there is no such file") == 1
    assert "1 of these would stop the run" in shown


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "read by no stage, not as judgements: collect.judges is simulated"),
        (["data.prompts=null", "data.demonstrations=null"], "read for demonstrations and prompts only, not as"),
        (["collect.judges=imported"], None),
    ],
)
def test_the_doctor_says_when_preferences_are_no_judgements(
    tmp_path: Path, overrides: list[str], said: str | None
) -> None:
    rows = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"What is {i}?", "chosen": "A number.", "rejected": "No."} for i in range(40)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    given = [part for one in (f"data.preferences={rows}", *overrides) for part in ("--set", one)]
    shown = rlhf("doctor", write_config(tmp_path), *given).out
    assert (said is None and "data.preferences" not in shown) or f"data.preferences: {said}" in shown


def test_the_doctor_counts_a_full_reward_model_beside_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_pipeline.memory import adapter_parameters, base_bytes
    from stages import doctor, settings

    needs: dict[str, float] = {}
    monkeypatch.setattr(doctor, "_fits", lambda _, name, need, there: needs.setdefault(name, need) and ("ok", name))
    found = {}
    for lora in ("{rank: 16}", "null"):
        needs.clear()
        assert rlhf("doctor", write_config(tmp_path), "--set", f"reward.lora={lora}").code == 0
        found[lora] = needs["ppo"]
    chosen = settings.load(write_config(tmp_path))
    shape = doctor._shape(chosen)
    base, adapter = base_bytes(shape, width=4, four_bit=False), 4 * adapter_parameters(shape, doctor._lora(chosen).rank)
    assert found["null"] - found["{rank: 16}"] == pytest.approx(base - adapter)  # in place of the frozen adapter


def test_an_interrupted_command_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import runner

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    result = rlhf("run", write_config(tmp_path))
    assert result.code == 130
    assert "the same command goes on from here" in result.err


def test_an_unforeseen_error_leaves_its_details_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import runner

    def broken(*_: object, **__: object) -> None:
        raise LookupError("a bug\nof ours")

    monkeypatch.setattr(runner, "run", broken)
    result = rlhf("run", write_config(tmp_path))
    assert result.code == 1
    assert result.err.startswith("error: LookupError: a bug\n")
    assert "Traceback" not in result.err
    details = Path(re.search(r"are in (\S+)", result.err)[1])  # type: ignore[index]
    assert "Traceback" in details.read_text()
    details.unlink()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_our_characters(encoding: str, tmp_path: Path) -> None:
    shown = program("help-config", "sft", environment={"PYTHONIOENCODING": encoding})
    assert (shown.code, shown.err) == (0, "")
    failed = program("run", tmp_path / "none.yaml", environment={"PYTHONIOENCODING": encoding})
    assert failed.code == 2
    assert "there is no such configuration file" in failed.err


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    """``rlhf help-config | head -1``"""
    with subprocess.Popen(
        [sys.executable, "-m", "stages", "help-config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        err = running.stderr.read().decode()
    assert "Traceback" not in err
    assert "not foreseen" not in err


def test_status_for_programs(tmp_path: Path) -> None:
    settings = write_config(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copy(settings, tmp_path / "run" / "config.yaml")
    shown = json.loads(rlhf("status", tmp_path / "run", "--json").out)
    assert shown["run"] == str(tmp_path / "run")
    assert shown["stages"]["ppo"] == {"state": "missing", "reasons": []}
    assert shown["unknown_keys"] == []


def kept_run(folder: Path) -> Path:
    """A run folder in which nothing has been run; its name needs quotes in a shell."""
    run = folder / "my run"
    run.mkdir()
    shutil.copy(write_config(folder, run="my run"), run / "config.yaml")
    return run


def test_status_of_a_run_of_another_version_names_what_it_does_not_know(tmp_path: Path) -> None:
    run = kept_run(tmp_path)
    kept = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(kept.replace("model:\n", "model:\n  speed: 9\n"))
    shown = rlhf("status", run)
    assert (shown.code, shown.err) == (0, "")
    assert "does not know model.speed" in shown.out
    assert f"take that out of {run / 'config.yaml'}" in shown.out
    assert json.loads(rlhf("status", run, "--json").out)["unknown_keys"] == ["model.speed"]
    refused = rlhf("run", run)
    assert refused.code == 2
    assert "unknown key model.speed" in refused.err
    looked = rlhf("report", run)
    assert (looked.code, looked.err) == (0, "note: this run is of another version, which knew model.speed\n")
    for command in (("judgements", "rounds", run), ("users", "list", run)):
        assert "which knew model.speed" in rlhf(*command).err


def test_status_and_run_say_what_to_type_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import runner, states

    run = kept_run(tmp_path)
    assert f"next: rlhf run '{run}' " in rlhf("status", run).out
    (run / "collect.partial").mkdir()
    note = run / "collect.partial" / states.FAILED
    states.note(note, "the disk is full")
    failed = rlhf("status", run).out
    assert re.search(r"^collect +failed +\n +the disk is full$", failed, re.MULTILINE)
    assert f"next: mend what failed, then: rlhf run '{run}' " in failed
    note.unlink()
    states.note(run / "collect.partial" / states.WAITING, "5 of 5 judgements are still needed")
    waiting = rlhf("status", run).out

    def waits(*_: object, **__: object) -> None:
        raise WaitingForPeople("5 of 5 judgements are still needed")

    monkeypatch.setattr(runner, "run", waits)
    asked = rlhf("run", run)
    assert asked.code == 3
    assert asked.err.startswith("5 of 5 judgements are still needed\n")
    for said in (waiting, asked.err):
        assert re.search(rf"^ +1\. rlhf annotate '{run}'  +serves the page", said, re.MULTILINE)
        assert re.search(rf"^ +2\. rlhf run '{run}'  +counts again", said, re.MULTILINE)


def test_the_next_command_is_called_as_this_program_was(tmp_path: Path) -> None:
    run = kept_run(tmp_path)
    assert f"next: python -m stages run '{run}'" in program("status", run).out
    script = Path(sys.executable).parent / "rlhf"
    for path, called in ((os.environ["PATH"] + os.pathsep + str(script.parent), "rlhf"), ("/usr/bin", str(script))):
        shown = subprocess.run(
            [script, "status", run], capture_output=True, text=True, env={**os.environ, "PATH": path}
        )
        assert f"next: {called} run '{run}'" in shown.stdout


def test_a_run_notices_what_people_do_after_it_has_read_their_judgements(tmp_path: Path) -> None:
    from rlhf_pipeline.store import JudgementStore
    from rlhf_pipeline.store.records import Answer

    people = {"run": {"stages": ["sft", "sample", "collect"]}, "collect": {"judges": "people", "max_pairs": 3}}
    settings, run = write_config(tmp_path, people), tmp_path / "run"

    def state() -> tuple[str, str]:
        collect = json.loads(rlhf("status", run, "--json").out)["stages"]["collect"]
        return collect["state"], " ".join(collect["reasons"])

    assert rlhf("run", settings).code == 3
    assert state() == ("waiting", "3 of 3 judgements are still needed (none made yet)")
    store = JudgementStore.open(run / "judgements.db")
    [round_id], user = [one.id for one in store.rounds()], store.user("Ada")
    for number, held in enumerate(store.lease(round_id, user, 3)):
        made = f"{number} made, by 1 person" if number else "none made yet"
        assert state() == ("waiting", f"{3 - number} of 3 judgements are still needed ({made})")
        store.submit(user, Answer(f"token-{number}", held.id, "response", held.responses[0].id))
    assert state() == ("waiting", "all 3 judgements are made")
    assert rlhf("run", settings).code == 0
    assert state() == ("complete", "")

    held = store.undo(round_id, user, "token-undo")
    assert held is not None
    assert state() == ("stale", "people have judged, revised or taken back since")
    store.submit(user, Answer("token-again", held.id, "response", held.responses[1].id))
    assert rlhf("run", settings).code == 0
    assert state() == ("complete", "")
    store.close()


@pytest.mark.slow
def test_ppo_learns_from_a_python_file_alone_and_notices_its_change(tmp_path: Path) -> None:
    file = tmp_path / "short.py"
    file.write_text("def score(prompts, responses):\n    return [-len(text) for text in responses]\n", encoding="utf-8")
    changes = {"run": {"stages": ["sft", "ppo", "evaluate"]}, "ppo": {"rewards": [{"source": str(file)}]}}
    settings = write_config(tmp_path, changes)
    made = rlhf("run", settings)
    assert made.code == 0, made.err
    assert f"scores by score of {file}" in made.out
    file.write_text(file.read_text(encoding="utf-8") + "# shorter is better\n", encoding="utf-8")
    stages = json.loads(rlhf("status", tmp_path / "run", "--json").out)["stages"]
    assert stages["ppo"] == {"state": "stale", "reasons": [f"the data in {file} changed"]}
