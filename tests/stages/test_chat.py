"""Talking: what each policy hears, commands, a full context, the ends of input, and a real (tiny, random) run."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.errors import DamagedArtifact, IncompatibleArtifact, UsageError
from rlhf_pipeline.records import Message
from stages import chat as chatting
from stages.chat import Answer, Talk, chat, fit, printable
from tests import tiny_models
from tests.stages.tiny_run import finish, make_adapter


class Echo:
    """Answers with what it heard, and remembers it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, list[str], float]] = []

    def __call__(self, name: str, messages: Sequence[Message], temperature: float) -> Answer:
        self.heard.append((name, [m.content for m in messages], temperature))
        if messages[-1].content == "break":
            raise KeyboardInterrupt
        if messages[-1].content == "long":
            raise UsageError("that is too long")
        return Answer(f"{name} heard {len(messages)}", ended=messages[-1].content != "cut", dropped=0)


def talk(*names: str) -> tuple[Talk, Echo]:
    echo = Echo()
    return Talk(echo, names, 1.0), echo


def test_each_policy_remembers_its_own_conversation() -> None:
    both, echo = talk("sft", "ppo")
    both.turn("one")
    both.turn("two")
    assert echo.heard[2:] == [
        ("sft", ["one", "sft heard 1", "two"], 1.0),
        ("ppo", ["one", "ppo heard 1", "two"], 1.0),
    ]


def test_commands() -> None:
    one, echo = talk("ppo")
    one.turn("one")
    assert one.command("/new") == "a new conversation"
    assert one.command("/temperature 0.5") == "temperature 0.5"
    one.turn("two")
    assert echo.heard[-1] == ("ppo", ["two"], 0.5)
    assert "with that system message" in (one.command("/system Be brief. ") or "")
    one.turn("three")
    one.command("/new")
    one.turn("four")
    assert [heard[1] for heard in echo.heard[-2:]] == [["Be brief.", "three"], ["Be brief.", "four"]]
    one.command("/system")
    one.turn("five")
    assert echo.heard[-1][1] == ["five"]
    for wrong in ("/temperature", "/temperature hot", "/temperature -1", "/temperature nan"):
        assert "stays 0.5" in (one.command(wrong) or "")
    assert "/temperature X" in (one.command("/help") or "")
    assert "/nonsense is no command" in (one.command("/nonsense") or "")
    assert one.command("/quit") is None


def test_a_broken_turn_leaves_no_trace() -> None:
    both, echo = talk("sft", "ppo")
    both.turn("one")
    with pytest.raises(KeyboardInterrupt):
        both.turn("break")
    both.turn("two")
    assert echo.heard[-1][1] == ["one", "ppo heard 1", "two"]


def encode(messages: Sequence[Message]) -> list[int]:
    """Ten tokens for every message."""
    return [0] * 10 * len(messages)


def test_the_oldest_turns_give_way() -> None:
    user, assistant = Message("user", "u"), Message("assistant", "a")
    dialogue = [user, assistant, user, assistant, user]
    assert fit(encode, dialogue, 50) == ([0] * 50, 0)
    assert fit(encode, dialogue, 49) == ([0] * 30, 2)
    assert fit(encode, dialogue, 10) == ([0] * 10, 4)
    system = Message("system", "s")
    assert fit(encode, [system, *dialogue], 40) == ([0] * 40, 2)
    with pytest.raises(UsageError, match="20 tokens, and the model has room for 19"):
        fit(encode, [system, *dialogue], 19)


def test_a_policy_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\rc\x07\nd\te\u202ef\u200b") == "a[2Jbc\nd\tef"
    assert printable("naïve 漢字 👩\u200d🍳") == "naïve 漢字 👩\u200d🍳"
    assert Answer("cut\x00", ended=False).shown() == "cut …"


def converse(monkeypatch: pytest.MonkeyPatch, lines: Sequence[str | type[BaseException]], *names: str) -> Echo:
    given = iter(lines)

    def read(prompt: str) -> str:
        line = next(given)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)
    one, echo = talk(*names)
    chatting._converse(one)
    assert next(given, "all read") == "all read"
    return echo


def test_the_loop_ends_with_the_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["hello", "", "/help", KeyboardInterrupt, "break", "long", "cut", EOFError]
    echo = converse(monkeypatch, lines, "ppo")
    out = capsys.readouterr().out
    assert [heard[1][-1] for heard in echo.heard] == ["hello", "break", "long", "cut"]
    assert "ppo: ppo heard 1" in out
    assert "/quit or Ctrl-D leaves" in out
    assert "broken off" in out
    assert "that is too long" in out
    assert "ppo heard 3 …" in out


def test_quit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert converse(monkeypatch, ["/quit"], "ppo").heard == []


@pytest.mark.parametrize(("width", "side_by_side"), [("100", True), ("50", False)])
def test_columns_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: str, side_by_side: bool
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    converse(monkeypatch, ["hello", EOFError], "sft", "ppo")
    lines = capsys.readouterr().out.splitlines()
    assert any("sft heard 1" in line and "ppo heard 1" in line for line in lines) == side_by_side
    assert any("ppo heard 1" in line for line in lines)


def test_markup_in_a_response_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    chatting._show({"sft": Answer("[bold]x[/bold]"), "ppo": Answer("[red]", dropped=2)})
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out
    assert "ppo no longer sees the first 2 messages" in out


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = tiny_models.make("llama", folder / "tiny")
    for seed, name in enumerate(("sft", "dpo")):
        make_adapter(model, folder / f"{name}.partial", seed)
        finish(folder, name, "policy", model)
    return folder


def settings_of(folder: Path, model: str = "tiny", **evaluate: Any) -> Any:
    return SimpleNamespace(
        model=ModelConfig(name=str(folder / model)),
        run=SimpleNamespace(seed=0, device="cpu"),
        evaluate=SimpleNamespace(**{"max_new_tokens": 8, "temperature": 1.0} | evaluate),
    )


def test_once_takes_the_best_policy(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat(settings_of(run_folder), run_folder, [], "Hello?")
    best = capsys.readouterr().out
    chat(settings_of(run_folder), run_folder, ["dpo"], "Hello?")
    assert capsys.readouterr().out == best != "\n"
    chat(settings_of(run_folder), run_folder, ["base", "sft", "dpo"], "Hello?")
    several = capsys.readouterr().out
    assert several.index("base:") < several.index("sft:") < several.index("dpo:")
    assert best.strip() in several


def test_a_response_never_overflows_the_context(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"too long: .* the model has room for 128 beside its response"):
        chat(settings_of(run_folder, max_new_tokens=10_000), run_folder, ["sft"], "word " * 300)


def test_what_cannot_be_talked_to(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)no policy 'ppo'.*there is dpo, sft, base; to make it: rlhf run \S+ ppo"):
        chat(settings_of(run_folder), run_folder, ["ppo"], "x")
    with pytest.raises(UsageError, match="no policy 'reward'"):
        chat(settings_of(run_folder), run_folder, ["reward"], "x")
    with pytest.raises(UsageError, match="nothing to answer"):
        chat(settings_of(run_folder), run_folder, [], "  ")
    tiny_models.make("llama", run_folder / "other", seed=9)
    with pytest.raises(IncompatibleArtifact, match="base weights"):
        chat(settings_of(run_folder, "other"), run_folder, ["sft"], "x")
    chat(settings_of(run_folder, "other"), tmp_path, [], "x")  # the base needs no artifact


def test_a_damaged_policy_is_not_loaded(run_folder: Path, tmp_path: Path) -> None:
    model = ModelConfig(name=str(run_folder / "tiny"))
    make_adapter(model, tmp_path / "sft.partial", 0)
    finish(tmp_path, "sft", "policy", model)
    weights = tmp_path / "sft" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedArtifact, match="differs from its sha256"):
        chat(settings_of(run_folder), tmp_path, ["sft"], "x")
