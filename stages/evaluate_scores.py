"""What the reward model and the gold judge say of the policies' responses: scores, and which rules they break."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.job import Job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rlhf_pipeline.records import Prompt

Rows = list[dict[str, Any]]


class RewardModelScores:
    """The run's reward model, loaded when it is first needed."""

    def __init__(self, job: Job, base: Path | None, end_id: int) -> None:
        """``base``: fully fine-tuned weights that its adapter is on; ``end_id``: the stop token that it has learnt."""
        from rlhf_pipeline.reward_models import Spec

        self._job, self._base, self._end_id = job, base, end_id
        self._folder = job.inputs["reward"].folder
        self._spec = Spec.read(self._folder)
        self._model: Any = None

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that it knows."""
        part = self._spec.rules if self._spec is not None else None
        return part.names if part is not None else ()

    def of(self, rows: Rows, prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]]) -> Rows:
        """``score`` of every response, whichever stop token ended it, and ``broken``, rule → probability."""
        from rlhf_pipeline.generation import ending_with
        from rlhf_pipeline.reward_models import Scorer, load_reward_model
        from rlhf_pipeline.rule_models import WithRules

        size, own = self._job.config.batch_size, self._spec is not None and self._spec.own_model
        if self._model is None and own:
            self._model = Scorer.on_own_model(self._folder, device=self._job.device)
        elif self._model is None:
            settings, device = self._job.settings, self._job.device
            self._model = load_reward_model(settings.model, self._folder, device=device, base=self._base)
        if own:
            messages, texts = [prompt.messages for prompt in prompts], [row["text"] for row in rows]
            ended = [row["ended"] for row in rows]
            found = self._model.explain(messages, texts, ended=ended, batch_size=size)
            return [{"score": one.score, "broken": dict(one.broken)} for one in found]
        judged = [ending_with(row["ids"], row["ended"], self._end_id) for row in rows]
        sequences = [[*prompt, *ids] for prompt, ids in zip(encoded, judged, strict=True)]
        if not isinstance(self._model, WithRules):
            return [{"score": score, "broken": {}} for score in self._model.score(sequences, size)]
        scores, _, broken = self._model.parts(sequences, size)
        return [
            {"score": score, "broken": dict(zip(self.rules, of_row, strict=True))}
            for score, of_row in zip(scores.tolist(), broken.tolist(), strict=True)
        ]


def gold(prompts: Sequence[Prompt], rows: Rows) -> Rows:
    """``gold``, the gold judge's score, and ``gold_broken``, the rules that it knows to be broken; None where it cannot
    read a response."""
    from rlhf_pipeline.pocket import judge

    found = []
    for prompt, row in zip(prompts, rows, strict=True):
        said = prompt.messages, row["text"], row["ended"]
        broken = judge.broken_rules(*said)
        found.append({"gold": judge.gold(*said), "gold_broken": None if broken is None else sorted(broken)})
    return found


def broken_shares(rows: Rows, rules: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Rule → how often one policy breaks it: ``model`` by the rule model (the mean probability), ``gold`` by the gold
    judge, over the responses that it can read (None: there is no such judge, or it does not know the rule)."""
    from rlhf_pipeline.pocket.judge import RULES

    read = [row["gold_broken"] for row in rows if row.get("gold_broken") is not None]
    return {
        rule: {
            "model": sum(row["broken"][rule] for row in rows) / len(rows),
            "gold": sum(rule in broken for broken in read) / len(read) if read and rule in RULES else None,
        }
        for rule in rules
    }


def rule_rows(policies: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Each rule, and how often each policy breaks it by the rule model (in brackets by the gold judge); none where no
    rule is known."""
    rows = []
    for rule in next(iter(policies.values())).get("rules", {}):
        shares = [row["rules"][rule] for row in policies.values()]
        cells = [_percent(one["model"]) + (f" ({_percent(one['gold'])})" if one["gold"] is not None else "")
                 for one in shares]  # fmt: skip
        rows.append((rule, *cells))
    return rows


def rule_table(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """:func:`rule_rows` as lines of text."""
    rows = rule_rows(policies)
    if not rows:
        return []
    width = max(len(rule) for rule, *_ in rows) + 2
    lines = [f"{'share of responses that break …':{width}}" + "".join(f"{name:>16}" for name in policies)]
    lines += [f"{rule:{width}}" + "".join(f"{cell:>16}" for cell in cells) for rule, *cells in rows]
    return [*lines, "by the rule model (in brackets by the gold judge)"]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
