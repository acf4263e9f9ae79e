"""Score a file of responses with a run's reward model: single responses, pairs, or several to a prompt.

rlhf score RUN FILE > scores.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rlhf_pipeline.errors import UsageError
from stages.settings import Settings

if TYPE_CHECKING:
    from rlhf_pipeline.records import Candidates
    from rlhf_pipeline.reward_models import Explained

_BATCH = 32


def score(settings: Settings, run_folder: Path, file: Path, *, out: Path | None = None, **source: str) -> None:
    """Write a JSON line for each row of a file, with the score of each of its responses (the combined reward where the
    reward model knows rules, whose probabilities of being broken are then there too); say how pairs came out.

    Args:
        file: any format that holds responses.
        out: the file to write; None is the terminal (or a pipe), and what is said goes to the error stream.
        source: ``format`` and ``on_bad_rows`` of the file, as in a configuration.

    Raises:
        UsageError: the run has no reward model yet, or there is no such format or other choice.
        DataError: rows that cannot be used, or are too long.
    """
    from pydantic import ValidationError

    from rlhf_pipeline.data import SourceConfig, read_candidates
    from rlhf_pipeline.reward_models import Scorer
    from stages.states import inspect

    folder = run_folder / "reward"
    if not folder.is_dir():
        raise UsageError(
            "there is no reward model yet", where=str(folder), advice=f"rlhf run {run_folder} reward, and then score"
        )
    try:
        rows_of = SourceConfig.model_validate({"path": str(file), **source})
    except ValidationError as error:
        first = error.errors()[0]
        where = f"--{first['loc'][0]}".replace("_", "-")
        raise UsageError(first["msg"].removeprefix("Value error, "), where=where) from None
    loaded = read_candidates(rows_of, system=settings.data.system)
    _note(loaded.summary())
    now = inspect(settings, run_folder).get("reward")
    if now is not None and now.state != "complete":
        why = f" ({'; '.join(now.reasons)})" if now.reasons else ""
        _note(f"note: the reward model is {now.state}{why}; the scores are of the one that was made before")
    scorer = Scorer.open(folder, device=_device(settings))
    rows = loaded.records
    flat = [(row, place) for row in rows for place in range(len(row.responses))]
    scores = scorer.explain(
        [row.prompt.messages for row, _ in flat],
        [row.responses[place] for row, place in flat],
        ended=[place not in row.cut for row, place in flat],
        batch_size=_BATCH,
    )
    given = iter(scores)
    of_row = [[next(given) for _ in row.responses] for row in rows]
    if out is None:
        _write(sys.stdout, rows, of_row)
    else:
        with out.open("w", encoding="utf-8") as file_out:
            _write(file_out, rows, of_row)
    for line in _summary(rows, of_row):
        _note(line)


def _device(settings: Settings) -> str:
    import torch

    return "cuda" if settings.run.device != "cpu" and torch.cuda.is_available() else "cpu"


def _write(stream: TextIO, rows: Sequence[Candidates], scores: Sequence[Sequence[Explained]]) -> None:
    for row, of_row in zip(rows, scores, strict=True):
        stream.write(json.dumps(_scored(row, of_row), ensure_ascii=False) + "\n")
    stream.flush()


def _scored(row: Candidates, found: Sequence[Explained]) -> dict[str, Any]:
    """One line: the prompt as messages, the responses as they were, a number for each, and which rules it breaks."""
    line: dict[str, Any] = {"prompt": [message.to_json() for message in row.prompt.messages]}
    scores, broken = [one.score for one in found], [dict(one.broken) for one in found]
    knows_rules = any(broken)
    if row.is_pair:
        line |= dict(zip(("chosen", "rejected"), row.responses, strict=True))
        line |= dict(zip(("chosen_score", "rejected_score"), scores, strict=True))
        line |= dict(zip(("chosen_broken", "rejected_broken"), broken, strict=True)) if knows_rules else {}
        return line | {"margin": scores[0] - scores[1]}
    if len(row.responses) == 1:
        line |= {"response": row.responses[0], "score": scores[0]}
        return line | ({"broken": broken[0]} if knows_rules else {})
    line |= {"responses": list(row.responses), "scores": scores}
    return line | ({"broken": broken} if knows_rules else {})


def _summary(rows: Sequence[Candidates], found: Sequence[Sequence[Explained]]) -> Iterator[str]:
    from rlhf_pipeline.reward_evaluation import Share

    scores = [[one.score for one in of_row] for of_row in found]
    flat = [score for of_row in scores for score in of_row]
    yield f"{len(flat):,} responses scored: mean {sum(flat) / len(flat):.3f}, {min(flat):.3f} to {max(flat):.3f}"
    whole = [one for of_row in found for one in of_row]
    for rule in whole[0].broken:
        likely = sum(one.broken[rule] > 0.5 for one in whole)
        yield f"rule {rule!r}: broken, more likely than not, in {likely:,} of {len(whole):,} responses"
    margins = [of_row[0] - of_row[1] for row, of_row in zip(rows, scores, strict=True) if row.is_pair]
    if margins:
        share = Share.of(margins)
        yield (
            f"the chosen response scores higher in {share.value:.1%} of {share.pairs:,} pairs "
            f"(95 %: {share.low:.1%} to {share.high:.1%})"
        )


def _note(text: str) -> None:
    """For the person, beside the scores, which may go into a file."""
    print(text, file=sys.stderr)
