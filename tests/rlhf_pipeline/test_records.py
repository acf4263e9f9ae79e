"""Records keep their identity and come back from disk as they went."""

from __future__ import annotations

from pathlib import Path

from rlhf_pipeline.records import (
    Message,
    Preference,
    Prompt,
    ResponseSet,
    SampledResponse,
    read_jsonl,
    write_jsonl,
)

PROMPT = Prompt((Message("system", "Be kind."), Message("user", 'سلام\u2028 "quoted"\n')))


def test_prompt_id_depends_on_roles_and_text() -> None:
    assert PROMPT.id == Prompt(PROMPT.messages).id
    assert Prompt((Message("user", "a"),)).id != Prompt((Message("assistant", "a"),)).id
    # two messages are not one message with both texts
    assert Prompt((Message("user", "a"), Message("user", "b"))).id != Prompt((Message("user", "ab"),)).id


def test_round_trips(tmp_path: Path) -> None:
    preference = Preference(
        PROMPT, "yes", "no", 0.75, 1.5, "people", 4, {"late": 1}, rejected_cut=True, weight=0.5, tie=True
    )
    responses = ResponseSet(PROMPT, (SampledResponse("a", (1, 2), True), SampledResponse("", (3,), False)))
    path = tmp_path / "rows.jsonl"
    assert write_jsonl(path, [preference.to_json(), responses.to_json()]) == 2
    first, second = read_jsonl(path)
    assert Preference.from_json(first) == preference
    assert ResponseSet.from_json(second) == responses
    assert not path.with_name("rows.jsonl.tmp").exists()


def test_preferences_of_earlier_versions_are_read() -> None:
    row = Preference(PROMPT, "yes", "no", meta={"weight": 0.25}).to_json()
    for key in ("weight", "tie", "weak", "chosen_cut", "rejected_cut"):
        del row[key]
    assert Preference.from_json(row) == Preference(PROMPT, "yes", "no", meta={"weight": 0.25}, weight=0.25)
    assert Preference.from_json(row | {"meta": {}}) == Preference(PROMPT, "yes", "no")
