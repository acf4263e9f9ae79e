"""What a round asks, and whether an answer answers it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, select

from rlhf_pipeline.errors import AnswerRefused
from rlhf_pipeline.store.engine import Database
from rlhf_pipeline.store.records import Answer, Form, Gold
from rlhf_pipeline.store.tables import form as form_table

LONGEST_COMMENT = 10_000
LONGEST_CORRECTION = 100_000
STRENGTHS = {1: "slightly better", 2: "better", 3: "much better"}

_read: dict[str, Form] = {}  # a digest names its questions for ever


def form_of(connection: Connection, digest: str) -> Form:
    """The form of this version."""
    if digest not in _read:
        query = select(form_table.c.questions).where(form_table.c.digest == digest)
        _read[digest] = Form.from_json(connection.execute(query).scalar_one())
    return _read[digest]


def forms_of(database: Database, digests: Collection[str]) -> dict[str, Form]:
    """The forms of these versions; "" is no version."""
    with database.read() as connection:
        return {digest: form_of(connection, digest) for digest in set(digests) - {""}}


def check_answer(form: Form, answer: Answer, responses: Collection[int]) -> None:
    """See that an answer has what the form asks for, and nothing else; a skip needs nothing more.

    Args:
        responses: the ids of the responses of the task.

    Raises:
        AnswerRefused: what is missing or does not fit.
    """
    _check_choice(form, answer, responses)
    _check_strength(form, answer)
    _check_rules(form, answer, responses)
    _check_ratings(form, answer, responses)
    _check_words(form, answer, responses)


def is_right(gold: Gold, given: Any) -> bool:
    """Whether an answer or a judgement is the known one.

    A ranking is right with the right response alone in front, or, where a tie is right, with all as equals.
    """
    if given.ranking and gold.choice == "tie":
        return len(given.ranking) == 1
    if given.ranking:
        return tuple(given.ranking[0]) == (gold.response_id,)
    return bool(given.choice == gold.choice and given.response_id == gold.response_id)


def _check_choice(form: Form, answer: Answer, responses: Collection[int]) -> None:
    choice = answer.choice
    wanted = {"ranking" if form.kind == "ranking" else "response", "skip"}
    wanted |= {"tie"} if form.tie and form.kind == "pair" else set()
    wanted |= {"all_bad"} if form.all_bad else set()
    if choice not in wanted:
        raise AnswerRefused(f"{choice!r} is no answer here; wanted: {', '.join(sorted(wanted))}")
    if (choice == "response") != (answer.response_id is not None):
        raise AnswerRefused(f"{choice!r} with response {answer.response_id} is not an answer")
    if answer.response_id is not None and answer.response_id not in responses:
        raise AnswerRefused(f"response {answer.response_id} is not one of its task")
    if (choice == "ranking") != (answer.ranking is not None):
        raise AnswerRefused("the ranking is missing" if choice == "ranking" else f"{choice!r} has no ranking")
    if answer.ranking is not None:
        ranked = [id_ for group in answer.ranking for id_ in group]
        if sorted(ranked) != sorted(responses) or not all(answer.ranking):
            raise AnswerRefused("the ranking does not name every response of the task exactly once")
        if not form.tie and len(answer.ranking) < len(ranked):
            raise AnswerRefused("responses are ranked as equals, and this round asks for an order without ties")


def _check_strength(form: Form, answer: Answer) -> None:
    asked = form.strength and answer.choice == "response"
    if asked and answer.strength not in STRENGTHS:
        raise AnswerRefused(f"how much better is missing: {', '.join(f'{n} {word}' for n, word in STRENGTHS.items())}")
    if not asked and answer.strength is not None:
        raise AnswerRefused("how much better was not asked")


def _check_rules(form: Form, answer: Answer, responses: Collection[int]) -> None:
    for broken in answer.rules.values():
        for rule in broken:
            if rule not in form.rules:
                raise AnswerRefused(f"there is no rule {rule!r}")
        if len(set(broken)) < len(broken):
            raise AnswerRefused("a rule is named twice for one response")
    _check_each(bool(form.rules), answer, answer.rules, responses, "which rules it breaks")


def _check_ratings(form: Form, answer: Answer, responses: Collection[int]) -> None:
    _check_each(bool(form.attributes), answer, answer.ratings, responses, "its ratings")
    points = {attribute.name: attribute.points for attribute in form.attributes}
    for given in answer.ratings.values():
        missing, unknown = points.keys() - given.keys(), given.keys() - points.keys()
        if missing:
            raise AnswerRefused(f"a rating is missing: {', '.join(sorted(missing))}")
        if unknown:
            raise AnswerRefused(f"there is no attribute {', '.join(sorted(unknown))}")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= points[name]:
                raise AnswerRefused(f"{name} is rated {value!r}; wanted: 1 to {points[name]}")


def _check_each(
    asked: bool, answer: Answer, given: Mapping[int, object], responses: Collection[int], what: str
) -> None:
    """That something was said of every response where it was asked, and of none where it was not."""
    if given and not asked:
        raise AnswerRefused(f"of a response it was not asked {what}")
    if set(given) - set(responses):
        raise AnswerRefused(f"response {min(set(given) - set(responses))} is not one of its task")
    if asked and (given or answer.choice != "skip") and set(given) != set(responses):
        raise AnswerRefused(f"of {len(set(responses) - set(given))} of {len(responses)} responses is missing: {what}")


def _check_words(form: Form, answer: Answer, responses: Collection[int]) -> None:
    for flag in answer.flags:
        if flag not in form.flags:
            raise AnswerRefused(f"there is no flag {flag!r}; there are: {', '.join(form.flags) or 'none'}")
    if answer.comment is not None and not form.comment:
        raise AnswerRefused("a comment was not asked")
    if len(answer.comment or "") > LONGEST_COMMENT:
        raise AnswerRefused(f"the comment has {len(answer.comment or ''):,} characters, at most {LONGEST_COMMENT:,}")
    if (answer.correction is None) != (answer.corrected_id is None):
        raise AnswerRefused("a correction needs its text and the response that it corrects")
    if answer.correction is None:
        return
    if not form.correction:
        raise AnswerRefused("a correction was not asked")
    if answer.corrected_id not in responses:
        raise AnswerRefused(f"response {answer.corrected_id} is not one of its task")
    if not answer.correction.strip():
        raise AnswerRefused("the corrected response is empty")
    if any("\ud800" <= c <= "\udfff" for c in answer.correction):
        raise AnswerRefused("the corrected response holds half of a character, which no file can keep")
    if len(answer.correction) > LONGEST_CORRECTION:
        raise AnswerRefused(f"the corrected response is longer than {LONGEST_CORRECTION:,} characters")
