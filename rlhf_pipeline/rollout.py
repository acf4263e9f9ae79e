"""What one iteration of PPO learns from: sampled responses, and what each role says about them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_pipeline import processes
from rlhf_pipeline.errors import TrainingError
from rlhf_pipeline.generation import Sampled, ending_with, generate
from rlhf_pipeline.length_groups import length_groups, pass_cost
from rlhf_pipeline.logprobs import (
    Sequences,
    in_order,
    last_hidden,
    micro_batches,
    pad_sequences,
    response_hidden,
    response_logprobs,
    response_states,
    token_entropy,
    token_logprobs,
)
from rlhf_pipeline.roles import Roles
from rlhf_pipeline.tokenization import ChatTokenizer
from rlhf_pipeline.trunk import KeptStates, Trunk

Scorer = Callable[["Rollout", Sequence[Sequence[int]]], Tensor]
"""Scores a rollout, given its rows in micro-batches: ``(batch,)`` in the reward model's own unit."""


@dataclass(frozen=True)
class Rollout:
    """Prompts and sampled responses, by row.

    Attributes:
        ended: ``(batch,)``, whether a stop token was sampled; the others are truncated.
        response_mask: ``(batch, response_len)``.
        sampling_logprobs: of each token under what it was drawn from, as the decoder computed it, ``(batch,
            response_len)``, 0 where masked.
        below: the states of the layers that every role shares, where they are kept.
        pass_cost: what a further pass costs in tokens (:func:`rlhf_pipeline.length_groups.pass_cost`).
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    ended: Tensor
    response_mask: Tensor
    sampling_logprobs: Tensor
    pad_id: int
    below: KeptStates | None = None
    pass_cost: int | None = None

    @staticmethod
    def of(prompts: Sequence[list[int]], sampled: Sequence[Sampled], *, pad_id: int, device: torch.device) -> Rollout:
        """From prompts and what was sampled for them."""
        width = max(len(s.ids) for s in sampled)
        mask = torch.tensor([[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in sampled], device=device)
        ended = torch.tensor([s.ended for s in sampled], device=device)
        drawn = torch.tensor([s.logprobs + [0.0] * (width - len(s.logprobs)) for s in sampled], device=device)
        return Rollout(list(prompts), [s.ids for s in sampled], ended, mask, drawn, pad_id)

    def ending_with(self, end_id: int) -> Rollout:
        """The same, with every sampled stop token as ``end_id``: the one that the reward model has learnt on."""
        pairs = zip(self.responses, self.ended.tolist(), strict=True)
        responses = [ending_with(ids, ended, end_id) for ids, ended in pairs]
        return self if responses == self.responses else replace(self, responses=responses, below=None)

    def keeping(self, trunk: Trunk, groups: Sequence[Sequence[int]]) -> Rollout:
        """The same, with the states of the layers that every role shares; they are made in these micro-batches."""
        kept: list[Tensor] = [torch.empty(0)] * len(self.prompts)
        for rows in groups:
            for row, states in zip(rows, trunk.states(self.sequences(rows).ids), strict=True):
                kept[row] = states[: len(self.prompts[row]) + len(self.responses[row])].clone()
        return replace(self, below=KeptStates(trunk, kept))

    def first(self, number: int) -> Rollout:
        """Its first rows."""
        names = ("prompts", "responses", "ended", "response_mask", "sampling_logprobs")
        return replace(self, below=None, **{name: getattr(self, name)[:number] for name in names})

    def tokens(self, *, passes: float) -> dict[str, float]:
        """What the phases work through: sampled tokens; prompts and responses once; the same ``passes`` times."""
        sampled = sum(map(len, self.responses))
        whole = sampled + sum(map(len, self.prompts))
        return {"rollout": sampled, "score": whole, "train": passes * whole}

    def sequences(self, rows: Sequence[int]) -> Sequences:
        """These rows as one padded batch."""
        chosen = [self.prompts[i] for i in rows], [self.responses[i] for i in rows]
        packed = pad_sequences(*chosen, pad_id=self.pad_id, device=self.response_mask.device)
        return packed if self.below is None else replace(packed, below=self.below.batch(rows))

    def minibatches(self, count: int, token_budget: int, seed: int) -> list[list[list[int]]]:
        """All rows once, in random minibatches of equal size (±1), each as micro-batches within the token budget.

        Of every minibatch, a process among several has the micro-batches that are its own. Where further passes have a
        price, micro-batches are divided as long as that saves more padding.
        """
        order = torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(seed)).tolist()
        lengths = [len(p) + len(r) for p, r in zip(self.prompts, self.responses, strict=True)]
        minibatches = []
        for place in range(count):
            rows = order[place::count]
            groups = [[rows[i] for i in group] for group in _dealt([lengths[i] for i in rows], token_budget)]
            minibatches.append([part for group in groups for part in self._of_like_length(group, lengths)])
        return minibatches

    def _of_like_length(self, rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
        if self.pass_cost is None:
            return [rows]
        return [[rows[i] for i in part] for part in length_groups([lengths[i] for i in rows], self.pass_cost)]


def _dealt(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """This process's micro-batches: each process gets as many rows of every length (± 1), in as many micro-batches."""
    by_length = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares = [by_length[first :: processes.world()] for first in range(processes.world())]
    grouped = [micro_batches([lengths[i] for i in rows], token_budget) for rows in shares]
    rows, groups = shares[processes.rank()], grouped[processes.rank()]
    mine = [[rows[i] for i in group] for group in groups]
    while len(mine) < min(max(map(len, grouped)), len(rows)):
        largest = max(mine, key=len)
        mine.append([largest.pop() for _ in range(len(largest) // 2)])
    return mine


def sample(
    roles: Roles,
    role: str,
    prompts: list[list[int]],
    chat: ChatTokenizer,
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
) -> Rollout:
    """One response of a role to each prompt, drawn from exactly the distribution that is trained (no top-p).

    Every process samples its share of them and gets the others' responses.
    """
    mine = processes.share(len(prompts))
    with roles.use(role) as model, roles.precision():
        sampled = generate(
            model,
            prompts[mine.start : mine.stop],
            stop_ids=chat.stop_ids,
            pad_id=chat.pad_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            first_row=mine.start,
            batch_size=batch_size,
        )
    rows = processes.gather_rows([[s.ended, *s.ids] for s in sampled], len(prompts))
    own = {place: s.logprobs for place, s in zip(mine, sampled, strict=True)}
    of_all = [Sampled(ids, bool(ended), own.get(place, [])) for place, (ended, *ids) in enumerate(rows)]
    made = Rollout.of(prompts, of_all, pad_id=chat.pad_id, device=roles.base.device)
    drawn = processes.add_up(made.sampling_logprobs)
    return replace(made, sampling_logprobs=drawn, pass_cost=pass_cost(roles.base))


@dataclass(frozen=True)
class Measured:
    """Log-probabilities of policy and reference, values, and the policy's entropy, all ``(batch, response_len)``.

    Without a critic there are no values.

    Attributes:
        features: what the values were read from, by row ``(response length, hidden)``, where nothing trains it.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor | None
    entropy: Tensor
    features: list[Tensor] | None = None


@dataclass(frozen=True)
class Batch:
    """One micro-batch to learn from; all but the sequences are ``(rows, response_len)``, without a graph."""

    sequences: Sequences
    logprobs: Tensor
    advantages: Tensor
    critic: tuple[Tensor, Tensor] | None
    """Values and returns."""
    features: Tensor | None = None
    """What the values are read from, ``(tokens, hidden)``, where nothing trains it."""


@dataclass(frozen=True)
class Experience:
    """A rollout with everything that its responses are learnt by, ``(batch, response_len)``."""

    rollout: Rollout
    measured: Measured
    advantages: Tensor
    returns: Tensor | None

    def batch(self, rows: Sequence[int]) -> Batch:
        """These rows, cut to the width of their own longest response."""
        sequences = self.rollout.sequences(rows)
        index, width = torch.tensor(rows, device=self.advantages.device), sequences.response_mask.shape[1]

        def cut(part: Tensor) -> Tensor:
            return part[index, :width]

        values, returns = self.measured.values, self.returns
        critic = None if values is None or returns is None else (cut(values), cut(returns))
        features = None if (kept := self.measured.features) is None else torch.cat([kept[i] for i in rows])
        return Batch(sequences, cut(self.measured.logprobs), cut(self.advantages), critic, features)


@torch.no_grad()
def measure(roles: Roles, rollout: Rollout, groups: Sequence[Sequence[int]], *, temperature: float) -> Measured:
    """Ask policy, reference and value (where there is that role) for every response token, in the given micro-batches.

    With the micro-batches of the first epoch the old log-probabilities are those of the training forward to the bit.
    Each process asks about its own rows and gets the others' answers.
    """
    batches = [rollout.sequences(rows) for rows in groups]
    logprobs: dict[str, list[Tensor]] = {"policy": [], "reference": []}
    entropy, values, hidden = list[Tensor](), list[Tensor](), list[Tensor]()
    for name, parts in logprobs.items():
        with roles.use(name) as model:
            for batch in batches:
                states, logits = response_states(model, batch)
                parts.append(batch.dense(token_logprobs(logits, batch.ids[batch.places()], temperature)))
                if name == "policy":
                    entropy.append(batch.dense(token_entropy(logits, temperature)))
                    if "value" in roles and roles.adapter_of("value") == "policy":
                        values.append(batch.dense(roles.head("value", states)))
    if "value" in roles and not values:
        with roles.use("value") as model:
            for batch in batches:
                hidden.append(response_hidden(model, batch))
                values.append(batch.dense(roles.head("value", hidden[-1])))
                if roles.adapter_of("value") == "value":
                    hidden.clear()  # its adapter learns, so they will be others in the next pass
    policy, reference = (_of_all(parts, groups, rollout, by_token=True) for parts in logprobs.values())
    critic = _of_all(values, groups, rollout, by_token=True) if values else None
    # Of several processes another may learn from a row in the next pass: what nothing trains is then computed again.
    features = _by_row(hidden, groups, rollout) if hidden and processes.world() == 1 else None
    return Measured(policy, reference, critic, _of_all(entropy, groups, rollout, by_token=True), features)


def _by_row(parts: Sequence[Tensor], groups: Sequence[Sequence[int]], rollout: Rollout) -> list[Tensor]:
    """``(tokens, hidden)`` of each group as ``(response length, hidden)`` of each row."""
    rows: list[Tensor] = [torch.empty(0)] * len(rollout.responses)
    for part, group in zip(parts, groups, strict=True):
        for row, states in zip(group, part.split([len(rollout.responses[i]) for i in group]), strict=True):
            rows[row] = states
    return rows


@torch.no_grad()
def log_ratios(roles: Roles, rollout: Rollout, groups: Sequence[Sequence[int]], *, temperature: float) -> Tensor:
    """``log policy - log reference`` of each whole response, ``(batch,)``; of the policy's own, the mean is the KL."""
    sums = []
    for name in ("policy", "reference"):
        with roles.use(name) as model:
            batches = (rollout.sequences(rows) for rows in groups)
            parts = [response_logprobs(model, batch, temperature=temperature).sum(1) for batch in batches]
        sums.append(_of_all(parts, groups, rollout))
    return sums[0] - sums[1]


@torch.no_grad()
def adapter_scores(roles: Roles, rollout: Rollout, groups: Sequence[Sequence[int]], role: str = "reward") -> Tensor:
    """A reward role's score of each response, ``(batch,)``, read at its last token."""
    with roles.use(role) as model:
        parts = [roles.head(role, last_hidden(model, rollout.sequences(rows))) for rows in groups]
    return _of_all(parts, groups, rollout)


@torch.no_grad()
def adapter_outputs(roles: Roles, rollout: Rollout, groups: Sequence[Sequence[int]], role: str) -> Tensor:
    """What a role whose head has several outputs says of each response, ``(batch, outputs)``, at its last token."""
    count, outputs = len(rollout.prompts), len(roles.named_parameters(role)["head.weight"])
    with roles.use(role) as model:
        parts = [roles.head(role, last_hidden(model, rollout.sequences(rows))) for rows in groups]
    if not parts:  # fewer rows than processes
        return processes.add_up(torch.zeros((count, outputs), device=rollout.response_mask.device))
    return processes.add_up(in_order([part.reshape(-1, outputs) for part in parts], groups, outputs, count))


def _of_all(
    parts: list[Tensor], groups: Sequence[Sequence[int]], rollout: Rollout, *, by_token: bool = False
) -> Tensor:
    """What this process found out about the rows of its groups, and the others about theirs: ``(batch,)``, or with
    ``by_token`` ``(batch, response_len)``."""
    count, width = rollout.response_mask.shape
    if not parts:  # fewer rows than processes
        shape = (count, width) if by_token else (count,)
        return processes.add_up(torch.zeros(shape, device=rollout.response_mask.device))
    return processes.add_up(in_order(parts, groups, width, count))


@torch.no_grad()
def largest_difference(roles: Roles, one: str, other: str, texts: Sequence[Sequence[int]], *, pad_id: int) -> float:
    """The largest difference of two roles' log-probabilities on these token ids (each at least two tokens long)."""
    long = [list(ids) for ids in texts if len(ids) > 1]
    batch = pad_sequences([i[:1] for i in long], [i[1:] for i in long], pad_id=pad_id, device=roles.base.device)
    logprobs = []
    for name in (one, other):
        with roles.use(name) as model:
            logprobs.append(response_logprobs(model, batch))
    return (logprobs[0] - logprobs[1]).abs().max().item()


@dataclass(frozen=True)
class ScoreScale:
    """Mean and standard deviation of the reference's scores, settled once before training.

    A scale that moved with the policy would move the KL coefficient with it (they only enter as a ratio).
    """

    mean: float
    std: float

    @staticmethod
    def of(scores: Tensor) -> ScoreScale:
        """From the scores of the reference's responses, ``(batch,)``.

        Raises:
            TrainingError: they do not differ, or are not finite.
        """
        mean, std = scores.double().mean().item(), scores.double().std(unbiased=False).item()
        if not 1e-6 * max(1.0, abs(mean)) < std < float("inf"):
            raise TrainingError(
                f"the reward model's scores of {len(scores)} responses have mean {mean:.4g} and standard deviation "
                f"{std:.4g}: there is nothing to learn from them",
                advice="look at the reward stage's accuracy; train it longer or on more preferences",
            )
        return ScoreScale(mean, std)

    def apply(self, scores: Tensor, ended: Tensor, *, clip: float, missing_eos_penalty: float) -> Tensor:
        """Normalise, clip to ± ``clip``, and take the penalty from truncated responses: ``(batch,)`` → ``(batch,)``."""
        normal = ((scores - self.mean) / self.std).clamp(-clip, clip)
        return normal - missing_eos_penalty * (~ended).to(normal.dtype)


@torch.no_grad()
def normalise_head(roles: Roles, name: str, scale: ScoreScale) -> None:
    """Let a copy of the reward's head speak in normalised scores; a fresh head is 0 already, which is their mean."""
    head = roles.named_parameters(name)
    if head["head.weight"].any():
        head["head.weight"].div_(scale.std)
        head["head.bias"].sub_(scale.mean).div_(scale.std)


def derived_seed(*parts: object) -> int:
    """A seed for one purpose, from the run's seed and names or counters: no generator's state has to be kept."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def prompt_order(count: int, start: int, number: int, seed: int) -> list[int]:
    """Places ``start … start + number`` of an endless stream that goes through ``count`` prompts, anew in each pass."""
    places: list[int] = []
    while len(places) < number:
        passes, offset = divmod(start + len(places), count)
        generator = torch.Generator().manual_seed(derived_seed(seed, "prompts", passes))
        places += torch.randperm(count, generator=generator).tolist()[offset : offset + number - len(places)]
    return places
