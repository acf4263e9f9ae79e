"""What PPO starts from: the prompts, one base with its roles, what scores a response, and the checks on all of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_pipeline.errors import ConfigError, DataError, ModelError, TrainingError
from stages.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from rlhf_pipeline.records import Messages
    from rlhf_pipeline.reward_models import Scorer as TextScorer
    from rlhf_pipeline.reward_models import Spec
    from rlhf_pipeline.rewards import Scoring
    from rlhf_pipeline.roles import Roles
    from rlhf_pipeline.rollout import Rollout, Scorer
    from rlhf_pipeline.rule_models import RulePart
    from rlhf_pipeline.tokenization import ChatTokenizer
    from rlhf_pipeline.trunk import Trunk
    from stages.ppo import Config

    Conversations = Mapping[tuple[int, ...], Messages]


@dataclass(frozen=True)
class Prompts:
    """Token ids of the prompts to learn on and of those to look at, and the messages of both by ids."""

    train: list[list[int]]
    held_out: list[list[int]]
    conversations: Conversations


def encoded_prompts(job: Job, chat: ChatTokenizer) -> Prompts:
    """The run's prompts; what is too long is counted and left out.

    Held-out ones are the last by digest, as an evaluation takes the first: where more are held out than both need, none
    is looked at twice.
    """
    from stages.prompts import load_prompts

    config: Config = job.config
    limit = config.max_prompt_length
    loaded = load_prompts(job)
    held_out = sorted(loaded.held_out, key=lambda prompt: prompt.id)[-config.stop.prompts :]
    train, looked_at = ([chat.encode_prompt(one.messages) for one in side] for side in (loaded.train, held_out))
    kept = [ids for ids in train if len(ids) <= limit]
    if len(kept) < len(train):
        job.say(f"{len(train) - len(kept)} of {len(train)} prompts have more than {limit} tokens and are left out")
    if not kept:
        raise DataError(
            f"none of the {len(train)} training prompts has at most {limit} tokens",
            where="ppo.max_prompt_length",
            advice="raise it",
        )
    pairs = zip([*train, *looked_at], [*loaded.train, *held_out], strict=True)
    conversations = {tuple(ids): prompt.messages for ids, prompt in pairs}
    return Prompts(kept, [ids for ids in looked_at if len(ids) <= limit], conversations)


def make_roles(job: Job, chat: ChatTokenizer, conversations: Conversations) -> tuple[Roles, Scoring]:
    """The base with its roles, and what scores a rollout."""
    from rlhf_pipeline import models, processes
    from rlhf_pipeline.rewards import Scoring
    from rlhf_pipeline.roles import Roles
    from stages.ppo import sources

    config: Config = job.config
    sft = job.inputs["sft"].folder
    full_sft = models.full_model(sft)
    roles = Roles(models.load_causal_lm(job.settings.model, device=job.device, folder=full_sft))
    if full_sft is None:
        roles.add("reference", folder=sft / "adapter")
    else:
        roles.add("reference", lora=config.lora)  # B = 0: the SFT model itself
    roles.add("policy", copy_of="reference", trainable=True)
    scorers: dict[str, tuple[float, Scorer]] = {}
    learnt: dict[str, Scorer] = {}
    wanted = [one.source for one in sources(config) if one.file is None]
    if wanted:
        learnt = _learnt_scorers(job, roles, chat, conversations, rules_apart="rules" in wanted)
    for one in sources(config):
        if one.file is None:
            scorers[one.source] = one.weight, learnt[one.source]
        else:
            name = f"{Path(one.file).stem}.{one.function}"
            scorers[name] = one.weight, python_function(one.file, one.function, chat, conversations)
            job.say(f"scores by {one.function} of {one.file}")
    if config.estimator == "gae":
        _add_value(roles, config)
    if config.gradient_checkpointing:
        roles.recompute_layers()
    processes.copy_from_first(p for name in roles.names(trainable=True) for p in roles.parameters(name))
    return roles, Scoring(scorers)


def _learnt_scorers(
    job: Job, roles: Roles, chat: ChatTokenizer, conversations: Conversations, *, rules_apart: bool
) -> dict[str, Scorer]:
    """``reward_model``, the reward stage's model with its rules; or, ``rules_apart``, without them, and ``rules``.

    Roles on the base (several, of an ensemble), or a model of its own beside it.

    Raises:
        ConfigError: rules are wanted, and the reward model knows none.
    """
    from rlhf_pipeline import models
    from rlhf_pipeline.reward_models import Scorer as TextScorer
    from rlhf_pipeline.reward_models import Spec, load_reward_model
    from rlhf_pipeline.rule_models import WithRules

    folder = job.inputs["reward"].folder
    spec = Spec.read(folder)
    rules = spec.rules if spec is not None else None
    if rules_apart and rules is None:
        raise ConfigError(
            "the reward model has learnt no rules",
            where="ppo.rewards",
            advice="set reward.rules.learn: true (and collect.form.rules), or take the source rules away",
        )
    if rules is not None:
        job.say(f"the reward model knows {len(rules.names)} rules: {', '.join(rules.names)}")
    if spec is not None and spec.own_model:
        job.say(f"the reward model works on {spec.model.name}: it is held in memory beside the base")
        opened = TextScorer.on_own_model(folder, device=job.device)
        named: dict[str, Any] = {"reward_model": opened.model}
        if rules_apart and isinstance(opened.model, WithRules):
            named = {"reward_model": opened.model.preference, "rules": opened.model.rules}
        texts = {name: TextScorer(opened.text, model) for name, model in named.items()}
        return {name: _text_scorer(one, chat, conversations) for name, one in texts.items()}
    if models.full_model(folder) is not None:
        job.say("the reward model has all weights of its own: it is held in memory beside the base")
        whole = load_reward_model(job.settings.model, folder, device=job.device)

        def by_model(rollout: Rollout, _: Sequence[Sequence[int]]) -> torch.Tensor:
            judged = rollout.ending_with(chat.end_id)
            rows = [[*p, *r] for p, r in zip(judged.prompts, judged.responses, strict=True)]
            return _shared(lambda mine: whole.score(rows[mine]), len(rows), job.device)

        return {"reward_model": by_model}
    preference = _preference_roles(roles, folder, spec, chat.end_id)
    if rules is None:
        return {"reward_model": preference}
    broken = _rule_role(roles, folder, rules, chat.end_id)

    def combined(rollout: Rollout, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        return rules.combine(preference(rollout, groups), broken(rollout, groups))

    def penalty(rollout: Rollout, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        return -broken(rollout, groups).mean(-1)

    return {"reward_model": preference, "rules": penalty} if rules_apart else {"reward_model": combined}


def _preference_roles(roles: Roles, folder: Path, spec: Spec | None, end_id: int) -> Scorer:
    """The preference model as a role, ``reward``, or those of an ensemble, ``reward_0`` and so on."""
    import torch

    from rlhf_pipeline import models
    from rlhf_pipeline.rollout import adapter_scores

    members = spec.members if spec is not None else ()
    adapters = {f"reward_{number}": folder / name / "adapter" for number, name in enumerate(members)}
    for name, adapter in (adapters or {"reward": folder / "adapter"}).items():
        roles.add(name, folder=adapter)
        roles.set_head(name, models.read_score_head(adapter))
    combination = spec.combination if spec is not None else None

    def by_roles(rollout: Rollout, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        judged = rollout.ending_with(end_id)
        if combination is None:
            return adapter_scores(roles, judged, groups)
        return combination(torch.stack([adapter_scores(roles, judged, groups, role) for role in adapters]))

    return by_roles


def _rule_role(roles: Roles, folder: Path, rules: RulePart, end_id: int) -> Scorer:
    """The rule model as a role: the probability of each rule being broken, ``(batch, rules)``."""
    from rlhf_pipeline import models
    from rlhf_pipeline.rollout import adapter_outputs
    from rlhf_pipeline.rule_models import RULES

    adapter = folder / RULES / "adapter"
    roles.add(RULES, folder=adapter)
    roles.set_head(RULES, models.read_score_head(adapter))

    def broken(rollout: Rollout, groups: Sequence[Sequence[int]]) -> torch.Tensor:
        return rules.broken(adapter_outputs(roles, rollout.ending_with(end_id), groups, RULES))

    return broken


def _text_scorer(scorer: TextScorer, chat: ChatTokenizer, conversations: Conversations) -> Scorer:
    """A reward model with a tokenizer of its own reads the text of a response, not its ids."""

    def score(rollout: Rollout, _: Sequence[Sequence[int]]) -> torch.Tensor:
        prompts = [conversations[tuple(ids)] for ids in rollout.prompts]
        texts, ended = [chat.decode_response(ids) for ids in rollout.responses], rollout.ended.tolist()

        def of(mine: slice) -> list[float]:
            return scorer.score(prompts[mine], texts[mine], ended=ended[mine])

        return _shared(of, len(texts), rollout.response_mask.device)

    return score


def _shared(score: Callable[[slice], list[float]], count: int, device: Any) -> torch.Tensor:
    """The scores of all rows, of which each process computes its share: ``(count,)``."""
    import torch

    from rlhf_pipeline import processes

    mine = processes.share(count)
    scores = torch.zeros(count, device=device)
    scores[mine.start : mine.stop] = torch.tensor(score(slice(mine.start, mine.stop)), device=device)
    return processes.add_up(scores)


def python_function(file: str, name: str, chat: ChatTokenizer, conversations: Conversations) -> Scorer:
    """A function of a Python file as a scorer."""
    from rlhf_pipeline.rewards import function_scorer, load_function

    path = Path(file)
    return function_scorer(
        load_function(path, name),
        path,
        messages=lambda ids: [message.to_json() for message in conversations[tuple(ids)]],
        text=chat.decode_response,
    )


def _add_value(roles: Roles, config: Config) -> None:
    """The value starts as the reward model (an ensemble's first), which knows what is good, where it reads what that
    reads; else as 0."""
    import torch

    known = next((name for name in ("reward", "reward_0") if name in roles), None)

    nothing = torch.zeros(1, roles.base.config.get_text_config().hidden_size)
    if config.critic.on == "policy_trunk":
        roles.add_head("value", nothing, on="policy", trainable=True)
    elif config.critic.on == "reward_features":
        if known is None:
            raise ConfigError(
                "there is no reward adapter on the base, whose hidden states the value could read",
                where="ppo.critic.on",
                advice="set it to adapter or policy_trunk",
            )
        roles.add_head("value", roles.named_parameters(known)["head.weight"], on=known, trainable=True)
    elif known is not None:
        roles.add("value", copy_of=known, trainable=True)
    else:
        roles.add("value", lora=config.lora, trainable=True)
        roles.set_head("value", nothing)


def shared_trunk(job: Job, roles: Roles) -> Trunk | None:
    """The layers below all adapters, to be run once per iteration; null where there are none or it cannot be done."""
    from rlhf_pipeline import processes
    from rlhf_pipeline.trunk import decoder_layers

    if processes.world() > 1:
        return None  # a row that is this process's in one pass is another's in the next
    try:
        trunk = roles.trunk()
    except ModelError as error:
        job.say(f"every pass runs all layers: {error.what}")
        return None
    if trunk is not None:
        layers = len(decoder_layers(roles.base))
        job.say(f"the lower {trunk.depth} of {layers} layers carry no adapter: they run once per iteration")
    return trunk


def require_unmoved(roles: Roles, frozen: Mapping[str | None, str]) -> None:
    """Base, reference and reward have the fingerprints that they had at the start, and what is trained is the same in
    every process.

    Raises:
        TrainingError: one has not.
    """
    from rlhf_pipeline import processes

    moved = [name or "base" for name, fingerprint in frozen.items() if roles.fingerprint(name) != fingerprint]
    if moved:
        raise TrainingError(f"training has changed what must not change: {', '.join(moved)}")
    for name in roles.names(trainable=True):
        processes.require_same(f"the {name}", roles.fingerprint(name) if processes.world() > 1 else "")


def _tolerance(roles: Roles) -> float:
    """How far two forwards of the same weights and batch may be apart: nothing on a CPU, atomics on a GPU."""
    import torch

    return 1e-4 if roles.base.dtype in (torch.float32, torch.float64) else 5e-2


def require_equal_start(roles: Roles, prompts: list[list[int]], chat: ChatTokenizer) -> None:
    """The policy starts as the reference: KL(policy‖reference) is 0, seen on some prompts."""
    from rlhf_pipeline.rollout import largest_difference

    difference = largest_difference(roles, "policy", "reference", prompts[:8], pad_id=chat.pad_id)
    if not difference <= _tolerance(roles):
        raise TrainingError(
            f"the policy does not start as the SFT policy: log-probabilities differ by {difference:.2g}"
        )


def require_unit_ratio(error: float, roles: Roles) -> None:
    """Before the first step the policy is the one that was scored, so every probability ratio is 1."""
    if not error <= _tolerance(roles):
        raise TrainingError(
            f"the first probability ratio of an iteration differs from 1 by {error:.2g}: what was scored is not what "
            "is trained",
            advice="please report this with your configuration",
        )
