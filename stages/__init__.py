"""The stages, in the order of the chain: what each reads, what it makes, and which settings it depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A row of the table. ``name`` is the module in this package, the section in the configuration and the folder.

    ``needs`` and ``reads_if_there``: the stages whose artifacts it must have, and those that it uses when the run has
    them. ``settings``: dotted keys of the configuration, besides its own section and the seed, that change what it
    makes. ``uses_model``: base and tokenizer are part of its identity.
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    reads_if_there: tuple[str, ...]
    settings: tuple[str, ...]
    uses_model: bool
    summary: str


_SPLIT = ("model", "data.held_out")
_IMPORTS = ("data.preferences", "data.system")
_PROMPTS = (*_SPLIT, "data.prompts", "data.system")

STAGES = (
    Stage("sft", "policy", (), (), (*_SPLIT, "data.demonstrations", "data.system"), True, "demonstrations → policy"),
    Stage("sample", "responses", ("sft",), (), _PROMPTS, True, "policy → K responses per prompt"),
    Stage("collect", "preferences", (), ("sample",), _IMPORTS, False, "judgements → preferences"),
    Stage("reward", "reward_model", ("sft", "collect"), (), _SPLIT, True, "preferences → reward model"),
    Stage("dpo", "policy", ("sft", "collect"), (), _SPLIT, True, "preferences → policy, by DPO"),
    Stage("ppo", "policy", ("sft", "reward"), (), _PROMPTS, True, "reward model → policy, by PPO"),
    Stage("evaluate", "evaluation", ("sft",), ("reward", "dpo", "ppo"), _PROMPTS, True, "policies → win rates, report"),
)
NAMES = tuple(stage.name for stage in STAGES)
BY_NAME = {stage.name: stage for stage in STAGES}
