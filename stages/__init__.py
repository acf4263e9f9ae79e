"""The stages, in the order of the chain: what each reads, what it makes, and which settings it depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A row of the table. ``name`` is the module in this package, the section in the configuration and the folder.

    ``reads``: stages whose artifacts it needs. ``settings``: dotted keys of the configuration, besides its own
    section and the seed, that change what it makes. ``uses_model``: base and tokenizer are part of its identity.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    settings: tuple[str, ...]
    uses_model: bool
    summary: str


STAGES = (
    Stage("sft", "policy", (), ("model", "data.demonstrations", "data.held_out"), True, "base + demonstrations → policy"),
    Stage("sample", "responses", ("sft",), ("model", "data.prompts", "data.held_out"), True, "K responses per prompt"),
    Stage("collect", "preferences", ("sample",), ("data.preferences",), False, "judgements → preferences"),
    Stage("reward", "reward_model", ("sft", "collect"), ("model", "data.held_out"), True, "preferences → reward model"),
    Stage("dpo", "policy", ("sft", "collect"), ("model", "data.held_out"), True, "preferences → policy, by DPO"),
    Stage(
        "ppo",
        "policy",
        ("sft", "reward"),
        ("model", "data.prompts", "data.held_out"),
        True,
        "reward model → policy, by PPO",
    ),
    Stage(
        "evaluate",
        "evaluation",
        ("sft", "reward", "dpo", "ppo"),
        ("model", "data.prompts", "data.held_out"),
        True,
        "every policy on held-out prompts → report",
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
BY_NAME = {stage.name: stage for stage in STAGES}
