"""Jobs for tests of stages: real configuration, data and models in a temporary folder, without the runner."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlhf_pipeline.config import ModelConfig, Section
from rlhf_pipeline.data import DataConfig, SourceConfig
from rlhf_pipeline.records import Demonstration, Message, Preference, Prompt, write_jsonl
from stages.job import Job

_THINGS = ["the garden", "a lamp", "the bread", "my letter", "an old chair", "the window", "a bicycle", "the soup"]


def prompt(index: int, *, history: bool = False) -> Prompt:
    """A question; every index gives another one."""
    question = Message("user", f"How do I look after {_THINGS[index % len(_THINGS)]} number {index}?")
    if not history:
        return Prompt((question,))
    return Prompt((Message("user", f"Hello {index}"), Message("assistant", "Hello, my friend."), question))


def demonstrations(count: int) -> list[Demonstration]:
    """Short answers to different questions, every third in a longer dialogue."""
    return [
        Demonstration(prompt(i, history=i % 3 == 0), f"Water it slowly {'and early ' * (i % 4)}in the morning.")
        for i in range(count)
    ]


def preferences(count: int, probability: float = 1.0) -> list[Preference]:
    """Pairs in which the polite response, sometimes the shorter one, is chosen."""
    return [
        Preference(
            prompt(i, history=i % 3 == 0),
            chosen="You are welcome, my friend." + " Water it early." * (i % 2),
            rejected="Go away." + " Go away." * (2 - i % 3),
            probability=probability,
        )
        for i in range(count)
    ]


def write_demonstrations(path: Path, rows: list[Demonstration]) -> SourceConfig:
    """A file in TRL's conversational form."""
    write_jsonl(
        path,
        [
            {
                "prompt": [m.to_json() for m in row.prompt.messages],
                "completion": [{"role": "assistant", "content": row.response}],
            }
            for row in rows
        ],
    )
    return SourceConfig(path=str(path))


def write_preferences(folder: Path, rows: list[Preference], **metrics: Any) -> Any:
    """What ``collect`` leaves, as an input of later stages."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "preferences.jsonl", [row.to_json() for row in rows])
    return SimpleNamespace(folder=folder, manifest=SimpleNamespace(metrics=metrics))


class RecordingJob(Job):
    """A job that keeps what it was told to say."""

    def say(self, text: str) -> None:
        self.said.append(text)  # type: ignore[attr-defined]


def job(
    config: Section,
    model: ModelConfig,
    folder: Path,
    *,
    inputs: dict[str, Any] | None = None,
    data: DataConfig | None = None,
    seed: int = 0,
) -> Any:
    """A job of one stage; ``folder`` is made when missing, and kept as it is when it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: Any = SimpleNamespace(
        model=model, data=data or DataConfig(held_out=0.25), run=SimpleNamespace(seed=seed, tracking="none")
    )
    made = RecordingJob(config, settings, folder, inputs or {}, folder.parent, seed, "cpu")
    object.__setattr__(made, "said", [])
    return made


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a stage's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def sft_input(model: ModelConfig, folder: Path, **settings: Any) -> Any:
    """An SFT artifact made by the stage itself in three steps."""
    from stages import sft

    source = write_demonstrations(folder.parent / f"{folder.name}.jsonl", demonstrations(16))
    config = sft.Config(
        **{"max_steps": 3, "batch_size": 4, "warmup": 0.0, "learning_rate": 1e-2, "max_length": 200, **settings}
    )
    sft.run(job(config, model, folder, data=DataConfig(demonstrations=source, held_out=0.25)))
    return SimpleNamespace(folder=folder)


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle."""


def interrupt_at(monkeypatch: Any, step: int) -> None:
    """End training in the middle of a step, as a crash would: nothing is saved for it."""
    from rlhf_pipeline import training

    original = training._Watch.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise Interrupted
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(training._Watch, "on_step_end", on_step_end)


def tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of an artifact's adapter or model."""
    from safetensors.torch import load_file

    files = [*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same_tensors(one: Path, other: Path) -> bool:
    """Bitwise."""
    first, second = tensors(one), tensors(other)
    return bool(first) and first.keys() == second.keys() and all(bool((first[k] == second[k]).all()) for k in first)
