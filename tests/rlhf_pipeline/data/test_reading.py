"""From files to records: formats found, mapped and refused; unusable rows named together; what is kept is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.data import SourceConfig, read_demonstrations, read_preferences, read_prompts
from rlhf_pipeline.errors import DataError
from rlhf_pipeline.records import Message, Preference, Prompt, write_jsonl

REAL = Path(__file__).parents[4] / "shared" / "data"
PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine."},
]


def source(path: Path, rows: list[Any], **settings: Any) -> SourceConfig:
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), **settings)


def user(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def test_preferences_serve_as_preferences_demonstrations_and_prompts(tmp_path: Path) -> None:
    given = source(tmp_path, [PAIR])
    assert read_preferences(given).records == [Preference(user("Why?"), "Because.", "No.")]
    [demonstration] = read_demonstrations(given).records
    assert (demonstration.prompt, demonstration.response) == (user("Why?"), "Because.")
    assert read_prompts(given).records == [user("Why?")]


def test_own_preferences_file_comes_back(tmp_path: Path) -> None:
    own = [
        Preference(user("a"), "x", "y", 0.75, None, "people", 3, {"k": 1}),
        Preference(user("b"), "x", "y", 0.5, 2.0),
    ]
    write_jsonl(tmp_path / "preferences.jsonl", (preference.to_json() for preference in own))
    loaded = read_preferences(SourceConfig(path=str(tmp_path / "preferences.jsonl")))
    assert loaded.records == own
    assert loaded.format == "preference"


def test_summary_tells_what_became_of_every_row(tmp_path: Path) -> None:
    same = {**PAIR, "rejected": PAIR["chosen"]}
    given = source(tmp_path, [PAIR, PAIR, same, {**PAIR, "chosen": " "}, {**PAIR, "chosen": 1}], on_bad_rows="drop")
    loaded = read_preferences(given)
    assert (loaded.rows, len(loaded.records), loaded.duplicates) == (5, 2, 1)
    assert loaded.dropped == {"identical responses": 1, "empty response": 1, "wrong type": 1}
    assert loaded.rows == len(loaded.records) + sum(loaded.dropped.values())
    text = f"2 preferences from 5 rows of {given.path} (format preference); left out 3: 1 identical responses, "
    assert loaded.summary() == text + "1 empty response, 1 wrong type; 1 repeats kept"


def test_repeated_prompts_are_asked_once_in_order(tmp_path: Path) -> None:
    loaded = read_prompts(source(tmp_path, [{"prompt": text} for text in "abacb"]))
    assert loaded.records == [user("a"), user("b"), user("c")]
    assert loaded.duplicates == 2
    assert "2 repeats merged" in loaded.summary()


def test_a_tie_or_an_empty_response_still_has_a_prompt(tmp_path: Path) -> None:
    given = source(tmp_path, [{**PAIR, "chosen": ""}, {"prompt": "p", "chosen": "same", "rejected": "same"}])
    assert read_prompts(given).records == [user("Why?"), user("p")]


def test_last_turn_or_all_turns(tmp_path: Path) -> None:
    rows = [{"messages": CHAT}, {"messages": CHAT[:3]}]
    last = read_demonstrations(source(tmp_path, rows)).records
    assert [(len(d.prompt.messages), d.response) for d in last] == [(3, "Fine."), (1, "Hello.")]
    every = read_demonstrations(source(tmp_path, rows, turns="all")).records
    assert [d.response for d in every] == ["Hello.", "Fine.", "Hello."]
    assert [len(p.messages) for p in read_prompts(source(tmp_path, rows)).records] == [3]
    assert [len(p.messages) for p in read_prompts(source(tmp_path, rows, turns="all")).records] == [1, 3]
    with pytest.raises(DataError, match="turns: all has no meaning for preferences"):
        read_preferences(source(tmp_path, [PAIR], turns="all"))


def test_system_message_for_conversations_without_one(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Own."}, *CHAT]
    records = read_demonstrations(source(tmp_path, [{"messages": CHAT}, {"messages": own}]), system="Given.").records
    assert [d.prompt.messages[0] for d in records] == [Message("system", "Given."), Message("system", "Own.")]
    assert read_prompts(source(tmp_path, [PAIR]), system="S").records[0].messages[0] == Message("system", "S")


def test_columns_by_configuration(tmp_path: Path) -> None:
    rows = [{"question": "q", "good": "g", "bad": "b", "prompt": 7}]
    mapped = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    [preference] = read_preferences(source(tmp_path, rows, columns=mapped)).records
    assert preference == Preference(user("q"), "g", "b")
    [demonstration] = read_demonstrations(
        source(tmp_path, rows, columns={"prompt": "question", "completion": "bad"})
    ).records
    assert demonstration.response == "b"


def test_a_format_can_be_chosen(tmp_path: Path) -> None:
    loaded = read_demonstrations(source(tmp_path, [{**PAIR, "messages": CHAT}], format="messages"))
    assert loaded.format == "messages"
    assert loaded.records[0].response == "Fine."


def test_unknown_columns_say_what_is_there_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_preferences(source(tmp_path, [{"question": "q", "answer": "a"}]))
    text = str(caught.value)
    assert "no known format has these columns; found the columns: question, answer" in text
    assert "preference: prompt, chosen, rejected" in text
    assert "columns: {prompt: question" in text


def test_a_chosen_format_or_mapping_without_its_columns(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="the format alpaca needs the column instruction, output; found the columns: pr"
    ):
        read_demonstrations(source(tmp_path, [PAIR], format="alpaca"))
    with pytest.raises(DataError, match="found the columns: q"):
        read_prompts(source(tmp_path, [{"q": "x"}], columns={"prompt": "question"}))


def test_a_format_that_holds_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in the format messages, which holds demonstrations; wanted preferences"):
        read_preferences(source(tmp_path, [{"messages": CHAT}]))
    with pytest.raises(DataError, match="in the format prompts, which holds prompts; wanted demonstrations"):
        read_demonstrations(source(tmp_path, [{"prompt": "x"}]))


@pytest.mark.parametrize("on_bad_rows", ["error", "drop"])
def test_mixed_formats_are_refused_with_their_lines(tmp_path: Path, on_bad_rows: str) -> None:
    rows = [PAIR, PAIR, {"instruction": "i", "output": "o"}, PAIR, {"messages": CHAT}]
    given = source(tmp_path, rows, on_bad_rows=on_bad_rows)
    with pytest.raises(DataError) as caught:
        read_prompts(given)
    text = str(caught.value)
    assert "rows of 3 formats" in text
    assert f"preference: 3 rows, {given.path}:1, {given.path}:2, {given.path}:4\n" in text
    assert f"alpaca: 1 row, {given.path}:3\n" in text
    assert f"messages: 1 row, {given.path}:5\n" in text


def test_a_row_that_lacks_a_column_is_that_row_s_problem(tmp_path: Path) -> None:
    rows = [PAIR, {"prompt": "p", "chosen": "c"}, {"prompt": "p"}, {"id": 1}, PAIR]
    with pytest.raises(DataError) as caught:
        read_preferences(source(tmp_path, rows))
    text = str(caught.value)
    assert "3 of 5 rows cannot be used" in text
    assert ":2: missing column: rejected" in text
    assert ":3: missing column: chosen, rejected" in text
    assert ":4: missing column: prompt, chosen, rejected" in text


def test_all_unusable_rows_are_named_at_once(tmp_path: Path) -> None:
    given = source(tmp_path, [PAIR, *({**PAIR, "chosen": i} for i in range(30)), PAIR])
    with pytest.raises(DataError) as caught:
        read_preferences(given, report=tmp_path / "new" / "bad_rows.txt")
    error = caught.value
    assert "30 of 32 rows cannot be used" in str(error)
    assert len(error.details) == 21
    assert error.details[0] == f"{given.path}:2: wrong type: chosen is a number, wanted text or messages"
    assert error.details[-1] == f"… and 10 more, all in {tmp_path / 'new' / 'bad_rows.txt'}"
    assert error.advice is not None
    assert "on_bad_rows: drop" in error.advice
    written = (tmp_path / "new" / "bad_rows.txt").read_text().splitlines()
    assert len(written) == 30
    assert written[-1].startswith(f"{given.path}:31: ")


def test_broken_lines_and_broken_rules_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good, empty = json.dumps(PAIR), json.dumps({**PAIR, "rejected": ""})
    path.write_bytes(f"{good}\n{{broken\n{empty}\n".encode() + b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError) as caught:
        read_preferences(SourceConfig(path=str(path)))
    assert [detail.split(": ")[1] for detail in caught.value.details] == ["broken JSON", "empty response", "not UTF-8"]
    loaded = read_preferences(SourceConfig(path=str(path), on_bad_rows="drop"), report=tmp_path / "bad.txt")
    assert loaded.dropped == {"broken JSON": 1, "empty response": 1, "not UTF-8": 1}
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 3
    assert loaded.summary().endswith("; bad.txt in this stage's folder names each unusable row")


def test_a_report_is_spoken_of_only_where_there_is_one(tmp_path: Path) -> None:
    loaded = read_preferences(source(tmp_path, [PAIR]), report=tmp_path / "bad.txt")
    assert (loaded.report, "bad.txt" in loaded.summary()) == (None, False)
    assert not (tmp_path / "bad.txt").exists()
    (tmp_path / "none.jsonl").write_text("{broken")
    nothing = SourceConfig(path=str(tmp_path / "none.jsonl"), on_bad_rows="drop")
    with pytest.raises(DataError, match=r"each row is named in \S+/bad\.txt"):
        read_preferences(nothing, report=tmp_path / "bad.txt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [('{"a\n' * 4, "4 broken JSON"), (json.dumps({**PAIR, "rejected": PAIR["chosen"]}), "1 identical responses")],
)
def test_no_record_at_all_is_an_error_even_when_rows_are_dropped(content: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=f"none of the . rows could be used\n  {reason}"):
        read_preferences(SourceConfig(path=str(path), on_bad_rows="drop"))


def test_a_conversation_that_cannot_be_prompted_or_learnt_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no response: the conversation has no assistant turn"):
        read_demonstrations(source(tmp_path, [{"messages": CHAT[:1]}]))


class TestPocket:
    def test_generated_data(self) -> None:
        loaded = read_prompts(SourceConfig(path="pocket", limit=30), seed=3)
        assert (len(loaded.records), loaded.rows, loaded.format) == (30, 30, "pocket")
        assert loaded.records == read_prompts(SourceConfig(path="pocket", limit=30), seed=3).records
        assert loaded.records != read_prompts(SourceConfig(path="pocket", limit=30), seed=4).records
        [demonstration] = read_demonstrations(SourceConfig(path="pocket", limit=1), system="S").records
        assert demonstration.prompt.messages[0] == Message("system", "S")
        assert demonstration.response

    def test_what_makes_no_sense_for_it(self) -> None:
        with pytest.raises(DataError, match="made by judging"):
            read_preferences(SourceConfig(path="pocket"))
        with pytest.raises(DataError, match="turns, split cannot be set for the generated pocket data"):
            read_prompts(SourceConfig(path="pocket", turns="all", split="x"))


@pytest.mark.parametrize("path", sorted(REAL.glob("*.jsonl.gz")), ids=lambda path: path.name)
def test_real_files(path: Path) -> None:
    given = SourceConfig(path=str(path), on_bad_rows="drop")
    prompts = read_prompts(given)
    demonstrations = read_demonstrations(given)
    for loaded in (prompts, demonstrations):
        assert loaded.rows == len(loaded.records) + sum(loaded.dropped.values()) + (
            loaded.duplicates if loaded is prompts else 0
        )
        assert sum(loaded.dropped.values()) <= loaded.rows * 0.01
    if demonstrations.format != "alpaca":
        preferences = read_preferences(given).records
        assert all(p.chosen.strip() and p.rejected.strip() and p.chosen != p.rejected for p in preferences)
        assert {p.prompt for p in preferences} <= set(prompts.records)
