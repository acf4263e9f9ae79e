"""No dialogue is on both sides, whatever the records; every data set agrees; a number is met exactly."""

from __future__ import annotations

import random

import pytest

from rlhf_pipeline.data import (
    dialogue_key,
    is_held_out,
    make_split,
    split_by_prompt,
)
from rlhf_pipeline.errors import DataError
from rlhf_pipeline.records import Demonstration, Message, Preference, Prompt


def prompt(*texts: str, system: str | None = None) -> Prompt:
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]
    return Prompt((*((Message("system", system),) if system else ()), *turns))


def random_prompts(rng: random.Random, count: int) -> list[Prompt]:
    """Dialogues that often share a first turn, with repeats."""
    made = []
    for _ in range(count):
        texts = [f"question {rng.randrange(count)}"]
        for turn in range(rng.choice((0, 0, 1, 2))):
            texts += [f"answer {rng.randrange(3)}", f"follow-up {turn} {rng.randrange(3)}"]
        made.append(prompt(*texts, system=rng.choice((None, None, "Be kind."))))
    return made


def test_key_is_the_first_user_turn() -> None:
    one = dialogue_key(prompt("Hello there"))
    assert one == dialogue_key(prompt("Hello there", "Hi.", "How are you?"))
    assert one == dialogue_key(prompt(" hello\n THERE ", system="Be kind."))
    assert one != dialogue_key(prompt("Hello where"))


def test_side_depends_on_key_and_seed_alone() -> None:
    assert [is_held_out("abc", seed=seed, fraction=0.5) for seed in range(12)] == [
        is_held_out("abc", seed=seed, fraction=0.5) for seed in range(12)
    ]
    sides = [is_held_out("abc", seed=seed, fraction=0.5) for seed in range(50)]
    assert 10 < sum(sides) < 40
    assert not is_held_out("abc", seed=1, fraction=0.0)
    assert is_held_out("abc", seed=1, fraction=1.0)


def test_side_never_changes_between_versions() -> None:
    """Held-out prompts of an old run must not be trained on by a new version of the program."""
    held = [key for key in ("a", "b", "c", "d", "e", "f", "g", "h") if is_held_out(key, seed=0, fraction=0.5)]
    assert held == ["d", "f", "g", "h"]


def test_a_larger_fraction_only_adds() -> None:
    keys = [str(i) for i in range(2000)]
    tenth = {key for key in keys if is_held_out(key, seed=3, fraction=0.1)}
    third = {key for key in keys if is_held_out(key, seed=3, fraction=1 / 3)}
    assert tenth < third
    assert 140 < len(tenth) < 260
    assert 580 < len(third) < 750


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", ["fraction", "number"])
def test_no_dialogue_on_both_sides_and_nothing_lost(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    prompts = random_prompts(rng, rng.randrange(20, 120))
    distinct = len(set(prompts))
    held_out = rng.uniform(0.05, 0.6) if kind == "fraction" else rng.randrange(1, distinct // 2)
    train, held = split_by_prompt(prompts, held_out=held_out, seed=seed)
    assert sorted(p.id for p in (*train, *held)) == sorted(p.id for p in prompts)
    assert not {dialogue_key(p) for p in train} & {dialogue_key(p) for p in held}
    if kind == "number":
        assert len(set(held)) == held_out
    assert [p for p in prompts if p in set(held)] == held
    shuffled = prompts[:]
    rng.shuffle(shuffled)
    assert set(split_by_prompt(shuffled, held_out=held_out, seed=seed)[1]) == set(held)


@pytest.mark.parametrize("held_out", [0.3, 17])
def test_every_data_set_agrees(held_out: float) -> None:
    prompts = [prompt(f"question {i}") for i in range(100)]
    split = make_split(held_out, seed=5, prompts=prompts)
    train, held = split.divide(prompts)
    demonstrations = split.divide([Demonstration(p, "x") for p in reversed(prompts)])
    preferences = split.divide([Preference(prompt(p.messages[0].content, "a", "more"), "x", "y") for p in prompts])
    for other_train, other_held in (demonstrations, preferences):
        assert {dialogue_key(r.prompt) for r in other_train} == {dialogue_key(p) for p in train}
        assert {dialogue_key(r.prompt) for r in other_held} == {dialogue_key(p) for p in held}


def test_a_number_too_large_is_refused() -> None:
    with pytest.raises(DataError, match="5 prompts are to be held out, but there are only 5"):
        make_split(5, seed=0, prompts=[prompt(str(i)) for i in range(5)] * 2)


def test_dialogues_that_would_exceed_the_number_train() -> None:
    big = [prompt("big", "a", str(i)) for i in range(6)]
    small = [prompt(f"small {i}") for i in range(4)]
    for seed in range(20):
        train, held = split_by_prompt(big + small, held_out=3, seed=seed)
        assert len(held) == 3
        assert set(big) <= set(train)
