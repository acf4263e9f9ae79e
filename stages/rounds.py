"""Rounds of judging: what is asked of whom about which responses, as the configuration has it.

Reads the sampled responses, writes rounds, tasks, known answers and priorities into the judgement store.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from rlhf_pipeline.config import Section
from rlhf_pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rlhf_pipeline.artifacts import Artifact
    from rlhf_pipeline.records import ResponseSet
    from rlhf_pipeline.store import JudgementStore
    from rlhf_pipeline.store.records import Form, NewTask, TaskRow
    from stages.collect import Config
    from stages.settings import Settings

GUIDELINES = """\
Read the whole conversation, then both responses. Choose the one you would rather have received.

- **Helpful** – it does what was asked, and nothing beside the point.
- **True** – a wrong answer is worse than a short one. Check what you can.
- **Safe** – refusing harm is right; refusing a harmless wish is not.
- **Kind and clear** – warm without flattery, no longer than it needs to be, and it comes to an end.

Length is no merit by itself, and neither is the side on which a response stands.
Press **Tie** when you would not mind which one you got, **Skip** when you cannot judge.
"""


class AttributeSection(Section):
    """A property of which each response is rated."""

    name: str = Field(min_length=1, max_length=80)
    """What it is called on the page, e.g. ``helpful``."""
    low: str = Field("", max_length=80)
    """Words at the low end of the scale."""
    high: str = Field("", max_length=80)
    """Words at the high end of the scale."""
    points: int = Field(5, ge=2, le=10)
    """Steps of the scale, from 1 on."""


class FormSection(Section):
    """What people are asked about each task."""

    kind: Literal["pair", "ranking"] = "pair"
    """``pair``: which of two responses is better; ``ranking``: all of several responses in order."""
    strength: bool = False
    """Of a pair also: slightly better, better or much better. It becomes the preference's margin (1, 2, 3)."""
    tie: bool = True
    """Whether responses may be called equally good."""
    all_bad: bool = False
    """Whether "none is good" is an answer; it counts as a tie."""
    rules: list[str] = Field(default_factory=list, max_length=20)
    """Rules; of each response people say which of them it breaks. What they said comes into ``rules.jsonl``."""
    attributes: list[AttributeSection] = Field(default_factory=list, max_length=10)
    """Properties of which each response is rated, e.g. ``[{name: helpful, low: not at all, high: very}]``."""
    correction: bool = False
    """Whether people may rewrite a response as it ought to be: a preference over the original, and a demonstration."""
    comment: bool = False
    """Whether people may leave a remark."""
    flags: list[str] = Field(default_factory=list, max_length=20)
    """Reasons with which people may flag a task, e.g. ``[personal data, wrong language]``."""

    @model_validator(mode="after")
    def _makes_sense(self) -> FormSection:
        if self.kind == "ranking" and self.strength:
            raise ValueError("strength is asked of pairs; a ranking has none")
        for name in ("rules", "flags"):
            texts = getattr(self, name)
            if any(not 1 <= len(text.strip()) <= 300 for text in texts) or len(set(texts)) < len(texts):
                raise ValueError(f"{name} are different texts of 1 to 300 characters")
        if len({attribute.name for attribute in self.attributes}) < len(self.attributes):
            raise ValueError("two attributes have the same name")
        return self

    def form(self) -> Form:
        """The form as the judgement store keeps it."""
        from rlhf_pipeline.store.records import Form

        return Form.from_json(self.model_dump())


def pair_tasks(sets: Iterable[ResponseSet], config: Config, *, seed: int, sampler: str = "") -> list[NewTask]:
    """Pairs of distinct responses, drawn per prompt so that every response appears before one appears twice.

    With ``max_pairs`` every prompt keeps its first pair before any keeps its second, and whose it is, lots decide.
    """
    from rlhf_pipeline.store.records import NewResponse, NewTask

    ranked: list[tuple[int, float, int, NewTask]] = []
    for number, item in enumerate(sets):
        distinct = list({r.text: r for r in reversed(item.responses)}.values())[::-1]
        lot = random.Random(f"{seed}:{item.prompt.id}")
        pairs = list(combinations(distinct, 2))
        lot.shuffle(pairs)
        used: dict[str, int] = defaultdict(int)
        for rank in range(min(config.pairs_per_prompt, len(pairs))):
            pair = min(pairs, key=lambda p: used[p[0].text] + used[p[1].text])
            pairs.remove(pair)
            for response in pair:
                used[response.text] += 1
            responses = tuple(NewResponse(r.text, "eos" if r.ended else "length", sampler) for r in pair)
            ranked.append((rank, _turn(seed, item), number, NewTask(item.prompt, responses)))
    kept = sorted(ranked, key=lambda row: row[:3])[: config.max_pairs]
    return [task for _, _, _, task in sorted(kept, key=lambda row: (row[2], row[0]))]


def ranking_tasks(sets: Iterable[ResponseSet], config: Config, *, seed: int, sampler: str = "") -> list[NewTask]:
    """For each prompt ``ranking_size`` distinct responses, drawn by lot, that are put in order at once; of at most
    ``max_pairs`` prompts, drawn by lot too."""
    from rlhf_pipeline.store.records import NewResponse, NewTask

    tasks: list[tuple[float, int, NewTask]] = []
    for number, item in enumerate(sets):
        distinct = list({r.text: r for r in reversed(item.responses)}.values())[::-1]
        lot = random.Random(f"{seed}:{item.prompt.id}")
        drawn = lot.sample(distinct, min(config.ranking_size, len(distinct)))
        if len(drawn) >= 2:
            responses = tuple(NewResponse(r.text, "eos" if r.ended else "length", sampler) for r in drawn)
            tasks.append((_turn(seed, item), number, NewTask(item.prompt, responses)))
    kept = sorted(tasks, key=lambda row: row[:2])[: config.max_pairs]
    return [task for _, _, task in sorted(kept, key=lambda row: row[1])]


def _turn(seed: int, item: ResponseSet) -> float:
    """When a prompt's turn comes where not all are judged: by lot, as the held-out ones stand after the others."""
    return random.Random(f"{seed}:{item.prompt.id}:turn").random()


def open_round(store: JudgementStore, settings: Settings, sampled: Artifact, judges: str) -> int:
    """The round over these responses, with its tasks and guidelines as the configuration has them now."""
    from rlhf_pipeline.records import ResponseSet, read_jsonl
    from rlhf_pipeline.store.records import Form

    config = settings.collect
    sets = [ResponseSet.from_json(row) for row in read_jsonl(sampled.folder / "responses.jsonl")]
    # By content: responses sampled again and found the same keep what was judged of them.
    source = digest([[s.prompt.id, [r.text for r in s.responses]] for s in sets])
    by_people = judges == "people"
    make = ranking_tasks if by_people and config.form.kind == "ranking" else pair_tasks
    tasks = make(sets, config, seed=settings.run.seed, sampler=sampled.digest)
    if not tasks:
        raise DataError(
            f"there is no pair to judge: the responses to each of the {len(sets)} prompts are all the same",
            advice="raise sample.temperature or sample.responses",
        )
    # Simulated judges draw lots: another seed is another panel, and new rules are asked of all. People's work is kept.
    rules = () if by_people else _known_rules(config.form.rules)
    lots = [source, settings.run.seed, *([rules] if rules else [])]
    round_id = store.open_round(
        judges,
        overlap=config.overlap,
        seed=settings.run.seed,
        source_digest=digest(lots) if judges == "simulated" else source,
        lease_seconds=config.lease_minutes * 60,
        form=config.form.form() if by_people else Form(all_bad=True, rules=rules),
        **(_terms(config) if by_people else {}),
    )
    known = _gold_tasks(settings) if by_people else {}
    store.add_tasks(round_id, [*tasks, *(task for task, _ in known.values())])
    store.retire_tasks(round_id, {task.digest for task in tasks} | known.keys())
    store.set_guidelines(round_id, _guidelines(config))
    if by_people:
        _mark_gold(store, round_id, known)
        if config.order == "uncertainty":
            _prioritise(store, round_id, settings)
    return round_id


def _known_rules(rules: Sequence[str]) -> tuple[str, ...]:
    """The rules that the simulated annotators are asked.

    Raises:
        ConfigError: one of them they do not know.
    """
    from rlhf_pipeline.pocket.judge import RULES

    if unknown := [rule for rule in rules if rule not in RULES]:
        raise ConfigError(
            f"the simulated annotators do not know the rule {unknown[0]!r}",
            where="collect.form.rules",
            details=[f"they know {rule!r}" for rule in RULES],
            advice="take one of these, or collect.judges: people",
        )
    return tuple(rules)


def _terms(config: Config) -> dict[str, Any]:
    return {
        "order": config.order,
        "gold_rate": config.gold_rate,
        "gold_feedback": config.gold_feedback,
        "repeat_rate": config.repeat_rate,
        "training_tasks": config.training_tasks,
        "edit_minutes": config.edit_minutes,
    }


def _gold_tasks(settings: Settings) -> dict[str, tuple[NewTask, str | None]]:
    """Task digest → the task, and the text of its better response; None where it is known to be a tie."""
    from rlhf_pipeline.data import read_preferences
    from rlhf_pipeline.store.records import NewResponse, NewTask

    config = settings.collect
    known: dict[str, tuple[NewTask, str | None]] = {}
    if config.gold is not None:
        for p in read_preferences(config.gold, system=settings.data.system).records:
            if p.chosen != p.rejected:
                task = NewTask(p.prompt, (NewResponse(p.chosen), NewResponse(p.rejected)), meta={"gold": dict(p.meta)})
                known[task.digest] = task, p.chosen if p.probability > 0.5 else None
    return known


def _mark_gold(store: JudgementStore, round_id: int, known: dict[str, tuple[NewTask, str | None]]) -> None:
    """Write the known answers; those that an admin gave to other tasks stay."""
    from rlhf_pipeline.store.records import Gold

    for row in store.tasks(round_id) if known else []:
        if row.digest in known:
            task, better = known[row.digest]
            why = task.meta["gold"].get("explanation")
            id_ = next((r.id for r in row.responses if r.text == better), None)
            gold = Gold("tie" if id_ is None else "response", id_, why if isinstance(why, str) else "")
            if row.gold != gold:
                store.set_gold(row.id, gold)


def _prioritise(store: JudgementStore, round_id: int, settings: Settings) -> None:
    """Give tasks that have no priority the more of it the closer the reward model's scores of their responses are."""
    fresh = [row for row in store.tasks(round_id) if row.priority == 0 and row.gold is None and row.state == "open"]
    if fresh:
        scores = scores_of(settings, fresh)
        apart = {row.id: [abs(scores[a.id] - scores[b.id]) for a, b in combinations(row.responses, 2)] for row in fresh}
        # 0 means that nothing is known, so it is none of the priorities that are given.
        store.set_priorities(round_id, {id_: -(sum(d) / len(d)) or -1e-9 for id_, d in apart.items()})


def scores_of(settings: Settings, rows: Sequence[TaskRow]) -> dict[int, float]:
    """The score of each response by its id, by the reward model that the configuration names."""
    from rlhf_pipeline.reward_models import Scorer

    config = settings.collect
    folder = Path(config.uncertainty_from or "")
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is no folder",
            where="collect.uncertainty_from",
            advice="name the reward folder of a finished run, e.g. runs/first/reward, or set collect.order: random",
        )
    shown = [(row.prompt.messages, response) for row in rows for response in row.responses]
    scores = Scorer.open(folder).score(
        [messages for messages, _ in shown],
        [response.text for _, response in shown],
        ended=[response.finish != "length" for _, response in shown],
    )
    return {response.id: score for (_, response), score in zip(shown, scores, strict=True)}


def _guidelines(config: Config) -> str:
    if config.guidelines is None:
        return GUIDELINES
    try:
        return Path(config.guidelines).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"the file {config.guidelines} cannot be read: {reason}",
            where="collect.guidelines",
            advice="give the path of a Markdown file, or leave it out for a general text",
        ) from None


def digest(value: object) -> str:
    """32 hex digits that change with the value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
