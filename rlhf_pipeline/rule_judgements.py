"""What judges said of rules → one record for each response, with everybody's votes on each rule combined.

Each rule is a question by itself, asked of each response (Glaese et al. 2022, arXiv:2209.14375). Which judgements count
is as for preferences (:mod:`rlhf_pipeline.aggregate`). A response that stands in several tasks has one record, and a
person who saw it in several has one vote on each rule: what they said last. An admin's decision takes the place of the
votes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_pipeline.aggregate import Counting, counted
from rlhf_pipeline.agreement import Estimate, krippendorff_alpha
from rlhf_pipeline.records import Prompt, RuledResponse, RuleVotes
from rlhf_pipeline.reliability import dawid_skene
from rlhf_pipeline.store.records import Form, JudgementRow, TaskRow

Response = tuple[Prompt, str, bool]
"""A prompt, a response to it, and whether that was cut off."""

Votes = dict[Response, dict[int, bool]]
"""Response → person → whether they find the rule broken."""

_SMOOTHING = 1.0  # answers that Dawid and Skene's model takes everybody to have given of each kind


@dataclass(frozen=True, slots=True)
class RuleSummary:
    """What came of one rule.

    Args:
        responses: that somebody answered for.
        broken: of them, how many break it.
        divided: of them, how many have as many votes for as against.
        agreement: Krippendorff's α of the people who answered for the same response.
    """

    rule: str
    responses: int
    broken: int
    divided: int
    agreement: Estimate

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """For a person."""
        if not self.responses:
            return f"rule {self.rule!r}: nobody answered"
        text = f"rule {self.rule!r}: broken in {self.broken:,} of {self.responses:,} responses"
        if self.divided:
            text += f", divided on {self.divided:,}"
        alpha = self.agreement
        if alpha.value is None:
            return text
        interval = "" if alpha.low is None else f" (95 %: {alpha.low:.2f} to {alpha.high:.2f})"
        return f"{text}; agreement α {alpha.value:.2f}{interval}"


def rule_records(
    tasks: Sequence[TaskRow],
    judgements: Sequence[JudgementRow],
    forms: Mapping[str, Form],
    *,
    counting: Counting,
) -> tuple[list[RuledResponse], list[RuleSummary]]:
    """A record for each response of these tasks of which somebody answered a rule, and a summary of each rule.

    Args:
        forms: version → form, of the forms under which people judged: a rule that a form did not ask is unanswered.
        counting: which judgements count, and how votes become a probability: the share of them, or with
            ``dawid_skene`` the posterior of a model of each rule's votes in which everybody errs in their own way
            (rules have no sides, so that ``noisy_bradley_terry`` has nothing to say of them).
    """
    rules = list(dict.fromkeys(rule for form in forms.values() for rule in form.rules))
    votes: dict[str, Votes] = {rule: defaultdict(dict) for rule in rules}
    decided: dict[str, dict[Response, bool]] = {rule: {} for rule in rules}
    by_id = {task.id: task for task in tasks}
    shown = [(task.prompt, r.text, r.finish == "length") for task in tasks for r in task.responses]
    for row in sorted(counted(judgements, counting)[0], key=lambda row: row.id):
        if row.purpose not in ("judge", "adjudicate") or row.task_id not in by_id or row.form_digest not in forms:
            continue
        task = by_id[row.task_id]
        for response in task.responses:
            key = (task.prompt, response.text, response.finish == "length")
            for rule in forms[row.form_digest].rules if response.id in row.rules else ():
                broken = rule in row.rules[response.id]
                if row.purpose == "adjudicate":
                    decided[rule][key] = broken
                else:
                    votes[rule][key][row.user_id] = broken
    combined = {rule: _combined(votes[rule], decided[rule], counting) for rule in rules}
    said = {key: {rule: combined[rule].get(key) for rule in rules} for key in dict.fromkeys(shown)}
    records = [RuledResponse(key[0], key[1], of_key, key[2]) for key, of_key in said.items() if any(of_key.values())]
    return records, [_summary(rule, combined[rule], votes[rule]) for rule in rules]


def _combined(votes: Votes, decided: Mapping[Response, bool], counting: Counting) -> dict[Response, RuleVotes]:
    found = {key: RuleVotes(sum(said.values()) / len(said), len(said)) for key, said in votes.items()}
    if counting.rule == "dawid_skene":
        labels = [(key, user, broken) for key, said in votes.items() for user, broken in said.items()]
        model = dawid_skene(labels, smoothing=_SMOOTHING)
        if True in model.classes:
            place = model.classes.index(True)
            found = {key: RuleVotes(float(model.posteriors[key][place]), one.judgements) for key, one in found.items()}
    known = {key: found[key].judgements if key in found else 1 for key in decided}
    return found | {key: RuleVotes(float(broken), known[key]) for key, broken in decided.items()}


def _summary(rule: str, found: Mapping[Response, RuleVotes], votes: Votes) -> RuleSummary:
    verdicts = [one.verdict for one in found.values()]
    alpha = krippendorff_alpha(votes)
    return RuleSummary(rule, len(found), verdicts.count("broken"), verdicts.count("divided"), alpha)
