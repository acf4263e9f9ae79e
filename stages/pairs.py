"""The preferences of a run as token ids on two sides, for the stages that learn from pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_pipeline.errors import DataError
from stages.job import Job
from stages.prompts import split_rule

if TYPE_CHECKING:
    from rlhf_pipeline.encoding import EncodedPair, Text
    from rlhf_pipeline.records import Preference


@dataclass(frozen=True)
class Pairs:
    """Encoded pairs by side with their records, and the account of the rest."""

    train: list[EncodedPair]
    held_out: list[EncodedPair]
    account: dict[str, int]
    train_records: list[Preference]
    held_out_records: list[Preference]


def load_pairs(
    job: Job, chat: Text, *, limit: int, min_probability: float, learn_undecided: bool = False, weak: bool = False
) -> Pairs:
    """Read what ``collect`` exported, leave out undecided and overlong pairs, split by prompt, and say so.

    Args:
        learn_undecided: ties and pairs below ``min_probability`` are among those to train on; none of them is held out.
        weak: whether pairs that no judge labelled count too.

    Raises:
        DataError: nothing to train on.
    """
    from rlhf_pipeline.encoding import encode_pairs
    from rlhf_pipeline.records import Preference, read_jsonl

    path = job.inputs["collect"].folder / "preferences.jsonl"
    everything = [Preference.from_json(row) for row in read_jsonl(path)]
    read = [p for p in everything if weak or not p.weak]
    if by_none := sum(p.weak for p in everything):
        job.say(f"{by_none:,} pairs that no judge labelled are {'learnt from too' if weak else 'left out'}")
    elif weak:
        job.say("every pair was labelled by judges: weak: true adds none (collect.weak makes such pairs)")
    split = split_rule(job)
    decided = [
        p
        for p in read
        if p.chosen != p.rejected
        and (p.probability >= min_probability or (learn_undecided and not split.is_held_out(p.prompt)))
    ]
    if not decided:
        raise DataError(
            f"none of the {len(read):,} preferences is decided (probability at least {min_probability})",
            where=str(path),
            advice="collect more judgements, or lower min_probability",
        )
    encoded = encode_pairs(chat, decided, limit=limit)
    sides: dict[bool, list[tuple[EncodedPair, Preference]]] = {True: [], False: []}
    for place, row in zip(encoded.kept, encoded.rows, strict=True):
        sides[split.is_held_out(decided[place].prompt)].append((row, decided[place]))
    train, train_records = [row for row, _ in sides[False]], [record for _, record in sides[False]]
    held_out, held_out_records = [row for row, _ in sides[True]], [record for _, record in sides[True]]
    undecided, of = len(read) - len(decided), " ones of held-out prompts" if learn_undecided else ""
    job.say(encoded.account("preferences", limit) + (f"; {undecided:,} undecided{of} left out" if undecided else ""))
    cut = sum(decided[place].chosen_cut or decided[place].rejected_cut for place in encoded.kept)
    if cut:
        job.say(f"{cut:,} pairs hold a response that was cut off at sample.max_new_tokens: it is learnt without an end")
    job.say(f"{len(train):,} pairs to train on, {len(held_out):,} held out by prompt")
    if not train:
        raise DataError(
            "every pair is held out, so none is left to train on",
            where="data.held_out",
            advice="hold out fewer, or collect judgements on more prompts",
        )
    account = {"read": len(read), "undecided": undecided, "overlong": encoded.overlong, "cut": cut}
    account |= {"train": len(train), "held_out": len(held_out)}
    return Pairs(train, held_out, account, train_records, held_out_records)
