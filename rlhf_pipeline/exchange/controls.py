"""A judgement as answers to named questions: what annotation tools ask and keep, whatever the tool.

A response is ``response_N``, N from 1 in the canonical order of its task; a rule is ``rule_N``, a flag ``flag_N``, an
attribute is a number too, by their order in the form: tools allow few characters in the names of questions. The form
goes along with each task, so that the numbers mean something when they come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlhf_pipeline.data.formats import RowProblem
from rlhf_pipeline.exchange import fields
from rlhf_pipeline.exchange.judged import Verdict
from rlhf_pipeline.store.records import Form

NONE = "none"
STRENGTHS = 3
Answers = dict[str, Any]


def answers_of(verdict: Verdict, form: Form) -> Answers:
    """What a judgement says, by question; of a skip, what was remarked. A ranking is a list of groups of responses."""
    said: Answers = {
        "flags": [f"flag_{form.flags.index(flag) + 1}" for flag in verdict.flags if flag in form.flags] or None,
        "comment": verdict.comment,
    }
    if verdict.choice == "skip":
        return {name: value for name, value in said.items() if value is not None}
    if verdict.ranking is not None:
        said["ranking"] = [[response_name(place) for place in group] for group in verdict.ranking]
    else:
        said["preference"] = verdict.choice if verdict.response is None else response_name(verdict.response)
    said |= {"strength": verdict.strength, "probability": verdict.probability}
    said["margin"] = None if verdict.margin == verdict.strength else verdict.margin
    for place, broken in sorted(verdict.rules.items()):
        known = [f"rule_{form.rules.index(rule) + 1}" for rule in broken if rule in form.rules]
        said[f"rules_{place + 1}"] = known or [NONE]
    for place, ratings in sorted(verdict.ratings.items()):
        for index, attribute in enumerate(form.attributes, start=1):
            said[f"rating_{index}_{place + 1}"] = ratings.get(attribute.name)
    if verdict.corrected is not None:
        said[f"correction_{verdict.corrected + 1}"] = verdict.correction
    return {name: value for name, value in said.items() if value is not None}


def verdict_of(answers: Mapping[str, Any], form: Form, order: list[int], blank: Verdict) -> Verdict:
    """``blank`` with what these answers say; ``order`` leads from the file's N to the place in canonical order.

    Raises:
        RowProblem: an answer to a question that the form does not ask, or one that is none.
    """
    choice, response, ranking = _choice(answers, order)
    strength = fields.optional(fields.whole, answers.get("strength"), "strength", 1, STRENGTHS)
    margin = fields.optional(fields.number, answers.get("margin"), "margin")
    rules: dict[int, tuple[str, ...]] = {}
    ratings: dict[int, dict[str, int]] = {}
    corrected, correction = None, None
    for number, place in enumerate(order, start=1):
        if (broken := answers.get(f"rules_{number}")) is not None:
            rules[place] = _named(broken, "rule", form.rules, f"rules_{number}")
        for index, attribute in enumerate(form.attributes, start=1):
            at = f"rating_{index}_{number}"
            if (points := answers.get(at)) is not None:
                ratings.setdefault(place, {})[attribute.name] = fields.whole(points, at, 1, attribute.points)
        if (text := answers.get(f"correction_{number}")) is not None:
            if corrected is not None:
                raise RowProblem("two corrections", "one response of a task may be corrected")
            corrected, correction = place, fields.text(text, f"correction_{number}")
    return replace(
        skip_of(answers, form, blank),
        choice=choice,
        response=response,
        ranking=ranking,
        strength=strength,
        probability=fields.optional(fields.number, answers.get("probability"), "probability", 0.5, 1.0),
        margin=margin if margin is not None or strength is None else float(strength),
        rules=dict(sorted(rules.items())),
        ratings=dict(sorted(ratings.items())),
        corrected=corrected,
        correction=correction,
    )


def skip_of(answers: Mapping[str, Any], form: Form, blank: Verdict) -> Verdict:
    """``blank``, a skip, with what was remarked."""
    return replace(
        blank,
        flags=_named(answers.get("flags", []), "flag", form.flags, "flags"),
        comment=fields.optional(fields.text, answers.get("comment"), "comment"),
    )


def response_name(place: int) -> str:
    """The name of the response at a place."""
    return f"response_{place + 1}"


def is_question(name: str, form: Form, responses: int) -> bool:
    """Whether this program asks a question of this name under this form."""
    plain = ("preference", "ranking", "strength", "probability", "margin", "flags", "comment")
    numbered = [f"{kind}_{n}" for kind in ("rules", "correction") for n in range(1, responses + 1)]
    ratings = [f"rating_{a}_{n}" for a in range(1, len(form.attributes) + 1) for n in range(1, responses + 1)]
    return name in plain or name in numbered or name in ratings


def _choice(answers: Mapping[str, Any], order: list[int]) -> tuple[Any, int | None, Any]:
    if (groups := answers.get("ranking")) is not None:
        ranking = tuple(
            tuple(sorted(_place(name, order, "ranking") for name in fields.sequence(group, "ranking")))
            for group in fields.sequence(groups, "ranking")
        )
        if sorted(place for group in ranking for place in group) != sorted(order):
            raise RowProblem("not a ranking", f"found {groups!r:.60}, wanted each of {len(order)} responses once")
        return "ranking", None, ranking
    said = answers.get("preference")
    if said is None:
        raise RowProblem("no judgement", f"answered: {', '.join(answers) or 'nothing'}; wanted preference or ranking")
    if said in ("tie", "all_bad"):
        return said, None, None
    return "response", _place(said, order, "preference"), None


def _place(name: Any, order: list[int], at: str) -> int:
    names = [response_name(index) for index in range(len(order))]
    fields.one_of(name, at, names)
    return order[names.index(name)]


def _named(value: Any, kind: str, known: tuple[str, ...], at: str) -> tuple[str, ...]:
    names = {f"{kind}_{index}": text for index, text in enumerate(known, start=1)} | {NONE: ""}
    found = [names[fields.one_of(name, at, names)] for name in fields.texts(value, at)]
    return tuple(text for text in found if text)
