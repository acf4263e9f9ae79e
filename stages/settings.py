"""The whole configuration: the model, the data, a section per stage, and the run itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf_pipeline import config as configuration
from rlhf_pipeline.config import ModelConfig, Section
from rlhf_pipeline.data import DataConfig, SourceConfig
from stages import BY_NAME, NAMES, Stage
from stages.collect import Config as CollectConfig
from stages.dpo import Config as DpoConfig
from stages.evaluate import Config as EvaluateConfig
from stages.launch import Launch
from stages.ppo import Config as PpoConfig
from stages.ppo import sources as ppo_sources
from stages.reward import Config as RewardConfig
from stages.sample import Config as SampleConfig
from stages.sft import Config as SftConfig

StageName = Literal["sft", "sample", "collect", "reward", "dpo", "ppo", "evaluate"]


class RunConfig(Section):
    """Where and how the chain runs."""

    folder: str = Field(min_length=1)
    """The run folder; it is made when missing."""
    stages: list[StageName] = Field(default_factory=lambda: list(NAMES))  # type: ignore[arg-type]
    """The stages that this run consists of; leave out what you do not want."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice: initialisation, data order, sampling, splits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes CUDA where there is one."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch; null leaves it to torch. A small model on few cores is fastest with 1."""
    parallel: int = Field(1, ge=1)
    """Stages at work at once, where they do not need each other: with 2, DPO runs beside reward and PPO, in a process
    of its own. Each takes the memory of its own model."""
    launch: Launch = Field(default_factory=Launch)
    """Several processes at one stage, on one machine."""
    tracking: Literal["none", "tensorboard", "trackio", "wandb", "mlflow"] = "none"
    """A tracker to report training to, beside ``metrics.jsonl`` (needs its package)."""


class Settings(Section):
    """Everything a run is made of.

    The sections' classes are imported by name: in ``sft: sft.Config`` the field would hide the module.
    """

    run: RunConfig
    """Where and how the chain runs."""
    model: ModelConfig
    """The base model."""
    data: DataConfig
    """Demonstrations, prompts and preferences."""
    sft: SftConfig = Field(default_factory=SftConfig)
    """Supervised fine-tuning."""
    sample: SampleConfig = Field(default_factory=SampleConfig)
    """K responses per prompt."""
    collect: CollectConfig = Field(default_factory=CollectConfig)
    """Who judges, and how much."""
    reward: RewardConfig = Field(default_factory=RewardConfig)
    """The reward model."""
    dpo: DpoConfig = Field(default_factory=DpoConfig)
    """Direct preference optimisation."""
    ppo: PpoConfig = Field(default_factory=PpoConfig)
    """Proximal policy optimisation."""
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    """Win rates and the report."""

    @model_validator(mode="after")
    def _needed_stages_are_there(self) -> Settings:
        for name in self.run.stages:
            for needed in BY_NAME[name].needs:
                if needed not in self.run.stages:
                    raise ValueError(f"run.stages has {name}, which needs {needed}; add {needed} or leave {name} out")
        learns = "ppo" in self.run.stages and any(one.file is None for one in ppo_sources(self.ppo))
        if learns and "reward" not in self.run.stages:
            raise ValueError(
                "run.stages has ppo, which needs reward; add reward or leave ppo out, "
                "or let Python files alone score (ppo.rewards)"
            )
        return self

    @model_validator(mode="after")
    def _processes_get_equal_shares(self) -> Settings:
        number = self.run.launch.processes
        if number > 1 and self.run.parallel > 1:
            raise ValueError("run.launch gives every device to one stage; run.parallel must then be 1")
        batches = {f"{name}.batch_size": getattr(self, name).batch_size for name in ("sft", "reward", "dpo")}
        batches["ppo.rollout_batch / ppo.num_minibatches"] = self.ppo.rollout_batch / self.ppo.num_minibatches
        for key, rows in batches.items():
            name = key.split(".")[0]
            micro = getattr(self.section(BY_NAME[name]), "micro_batch_size", None) or 1
            if name in self.run.stages and rows % (number * micro):
                times = f" times {name}.micro_batch_size ({micro})" if micro > 1 else ""
                raise ValueError(f"{key} is {rows:g}, which run.launch.processes ({number}){times} does not divide")
        return self

    @model_validator(mode="after")
    def _no_model_labels_for_itself(self) -> Settings:
        teacher = self.collect.weak.reward
        if teacher is not None and Path(teacher).resolve() == (Path(self.run.folder) / "reward").resolve():
            raise ValueError("collect.weak.reward is this run's own reward model; name one of another run")
        return self

    @model_validator(mode="after")
    def _a_divided_base_is_frozen(self) -> Settings:
        if self.run.launch.divides_base:
            if self.model.quantization != "none":
                raise ValueError("run.launch.strategy fsdp2 cannot divide 4-bit weights; use ddp or 16 bits")
            for name in ("sft", "reward", "dpo"):
                if name in self.run.stages and getattr(self, name).lora is None:
                    raise ValueError(
                        f"run.launch.strategy fsdp2 divides a frozen base, but {name}.lora is null; use ddp"
                    )
        return self

    def section(self, stage: Stage) -> Section:
        """The section of one stage."""
        section = getattr(self, stage.name)
        assert isinstance(section, Section)
        return section

    def relevant_to(self, stage: Stage) -> dict[str, Any]:
        """Every setting that a stage reads, by dotted key; those that can change what it makes decide on staleness."""
        values = {stage.name: self.section(stage).model_dump(mode="json"), "run.seed": self.run.seed}
        for key, value in self._values_beside(stage).items():
            values[key] = value.model_dump(mode="json") if isinstance(value, Section) else value
        return _flatten(values)

    def reads(self, stage: Stage, key: str) -> bool:
        """Whether a dotted key, known or not, stands beside or below settings that a stage reads."""
        section = key.rpartition(".")[0] + "."
        places = [f"{place}." for place in (stage.name, *self._keys_of(stage))]
        return any(place.startswith(section) or section.startswith(place) for place in places)

    def data_sources(self, stage: Stage) -> list[str]:
        """Paths and hub ids of what a stage reads: data, other runs' policies and reward models, functions."""
        beside = self._values_beside(stage).values()
        sources = [source.path for source in beside if isinstance(source, SourceConfig)]
        if stage.name == "sample" and (manifest := self.sample.policy_manifest()):
            sources.append(str(manifest))
        if stage.name == "collect":
            sources += [one.source for one in self.collect.weak.functions]
            if self.collect.weak.reward is not None:
                sources.append(str(Path(self.collect.weak.reward) / "manifest.json"))
        if stage.name == "ppo":
            sources += [one.file for one in ppo_sources(self.ppo) if one.file]
            sources += [self.ppo.stop.judge_file] if self.ppo.stop.judge_file else []
        return sources

    def memory_advice(self, stage: Stage) -> str:
        """What to change where a stage lacks memory."""
        advice = f"lower {', '.join(f'{stage.name}.{key}' for key in stage.memory)}"
        if getattr(self.section(stage), "gradient_checkpointing", None) is False:
            advice += f", or set {stage.name}.gradient_checkpointing: true"
        return advice + (", or run.parallel: 1" if self.run.parallel > 1 else "")

    def _values_beside(self, stage: Stage) -> dict[str, Any]:
        """What a stage reads beside its own section, by dotted key."""
        values = {key: self._value(key) for key in self._keys_of(stage)}
        if stage.name == "collect" and self.collect.judges != "imported":
            values["data.preferences"] = None  # they only stand in for prompts and demonstrations
        return values

    def _keys_of(self, stage: Stage) -> tuple[str, ...]:
        """A held-out number counts the run's prompts, so whatever is split by it depends on them."""
        counted = "data.held_out" in stage.settings and self.data.held_out >= 1
        return (*stage.settings, "data.prompts") if counted else stage.settings

    def _value(self, key: str) -> Any:
        if key == "data.prompts":
            return self.data.prompt_source()
        if key == "data.demonstrations":
            return self.data.demonstration_source()
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return value


def load(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a configuration file, or the one that a run folder keeps; a folder that was moved is the run's all the same.

    Raises:
        ConfigError: naming every mistake with its line.
    """
    if path.is_dir() and (path / "config.yaml").is_file():
        overrides = [f"run.folder={json.dumps(str(path))}", *overrides]
        path = path / "config.yaml"
    return configuration.load(Settings, path, overrides)


def load_kept(run_folder: Path) -> tuple[Settings, list[str]]:
    """The settings that a run folder keeps, and the keys among them that this version does not know.

    Raises:
        ConfigError: a value is wrong, or a key is missing.
    """
    unknown: list[str] = []
    return configuration.load(Settings, run_folder / "config.yaml", unknown=unknown), unknown


def load_to_look(run_folder: Path) -> Settings:
    """The settings that a run folder keeps, for what trains nothing: keys of another version are said and passed over.

    Raises:
        ConfigError: a value is wrong, or a key is missing.
    """
    chosen, unknown = load_kept(run_folder)
    if unknown:
        print(f"note: this run is of another version, which knew {', '.join(unknown)}", file=sys.stderr)
    return chosen


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
