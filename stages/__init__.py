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
    memory: tuple[str, ...] = ()
    """The settings of its own that take less memory when they are lowered."""
    trains: bool = False
    """Whether ``run.launch`` lets several processes work on it."""


_SPLIT = ("model", "data.held_out")
_IMPORTS = ("data.held_out", "data.preferences", "data.system")
_DEMONSTRATIONS = (*_SPLIT, "data.demonstrations", "data.system")
_PROMPTS = (*_SPLIT, "data.prompts", "data.system")

_JUDGED = ("reward", "dpo", "ppo")
_ROWS = ("micro_batch_size", "max_length")
_SAMPLED = ("batch_size", "max_new_tokens")
_ROLLOUTS = ("generation_batch", "micro_batch_tokens", "max_new_tokens", "max_prompt_length")

STAGES = (
    Stage("sft", "policy", (), (), _DEMONSTRATIONS, True, "demonstrations → policy", _ROWS, True),
    Stage("sample", "responses", ("sft",), (), _PROMPTS, True, "policy → K responses per prompt", _SAMPLED),
    Stage("collect", "preferences", (), ("sample",), _IMPORTS, False, "judgements → preferences"),
    Stage("reward", "reward_model", ("sft", "collect"), (), _SPLIT, True, "preferences → reward model", _ROWS, True),
    Stage("dpo", "policy", ("sft", "collect"), (), _SPLIT, True, "preferences → policy, by DPO", _ROWS, True),
    Stage("ppo", "policy", ("sft",), ("reward",), _PROMPTS, True, "reward model → policy, by PPO", _ROLLOUTS, True),
    Stage("evaluate", "evaluation", ("sft",), _JUDGED, _PROMPTS, True, "policies → win rates, report", _SAMPLED),
)
NAMES = tuple(stage.name for stage in STAGES)
BY_NAME = {stage.name: stage for stage in STAGES}
