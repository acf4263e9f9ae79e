"""What becomes of the judgements: votes are counted into preferences, looked through, and reported on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rlhf_pipeline.config import Section
from stages.job import Job
from stages.prompts import split_rule

if TYPE_CHECKING:
    from rlhf_pipeline.aggregate import Summary
    from rlhf_pipeline.records import Preference
    from rlhf_pipeline.store.records import JudgementRow, TaskRow

REPORT = "preference_report.json"


class VotesSection(Section):
    """How the votes on a pair become one preference."""

    rule: Literal["majority", "dawid_skene", "noisy_bradley_terry"] = "majority"
    """``majority``: the share of the votes. ``dawid_skene`` weighs people by how often they are right and by their
    liking for a side, measured on each other, on gold questions and on an admin's decisions; it wants ``overlap`` of 2
    or more. ``noisy_bradley_terry``: by how often they look at all. The share, or the model's, is the preference's
    probability."""
    late: Literal["keep", "drop"] = "keep"
    """Judgements that came after their place was given to somebody else."""
    flagged: Literal["keep", "drop"] = "keep"
    """Tasks that somebody flagged."""


def count(
    job: Job, url: str, tasks: Sequence[TaskRow], judgements: Sequence[JudgementRow]
) -> tuple[list[Preference], Summary]:
    """The votes as preferences, by the rules of ``collect.votes``; people stand in them under pseudonyms."""
    from rlhf_pipeline.aggregate import Counting, aggregate

    config = job.config
    votes: VotesSection = config.votes
    counting = Counting(votes.rule, late=votes.late == "keep", flagged=votes.flagged == "keep")
    preferences, summary = aggregate(tasks, judgements, source=config.judges, counting=counting, who=_who(job, url))
    for number, what in ((summary.late, "that came late"), (summary.flagged, "of flagged tasks")):
        if number:
            job.say(f"{number:,} judgements {what} are left out")
    agreement = "" if summary.agreement is None else f", agreement {summary.agreement:.0%}"
    job.say(
        f"{summary.judgements:,} judgements by {summary.annotators} of {summary.pairs:,} pairs → "
        f"{summary.preferences:,} preferences, {summary.ties:,} ties{agreement}"
    )
    return preferences, summary


def _who(job: Job, url: str) -> Callable[[str], str]:
    """The name of a judge in the records: that of a person is nobody's business, a made-up one is kept."""
    if job.config.judges != "people":
        return str
    from rlhf_pipeline.exchange.pseudonyms import Pseudonyms, read_salt, salt_beside

    return Pseudonyms(read_salt(salt_beside(url, job.run_folder))).of


def report(job: Job, preferences: Sequence[Preference]) -> dict[str, Any]:
    """Say what there is to know of the preferences, and write it beside them."""
    from rlhf_pipeline.artifacts import write_atomically
    from rlhf_pipeline.preference_report import preference_report

    found = preference_report(preferences, is_held_out=split_rule(job).is_held_out)
    for sentence in found.sentences():
        job.say(sentence)
    whole = found.to_json() | {"sentences": found.sentences()}
    write_atomically(job.folder / REPORT, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    return whole
