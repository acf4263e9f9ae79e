"""The formats of trainers: exact rows, what is left out, what their consumers read, and files of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.data import SourceConfig, read_demonstrations, read_preferences
from rlhf_pipeline.errors import DataError
from rlhf_pipeline.exchange import Terms, Verdict, export, read_file, write
from tests.rlhf_pipeline.exchange.judged_rounds import ANN, BOB, a_round, asked, chose, task, there_and_back

PROMPT = asked("hi", "hello", "why?", system="Be brief.")
MESSAGES = [m.to_json() for m in PROMPT.messages]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))
EXTRAS = {"probability": 1.0, "weight": 1.0, "judgements": 1, "source": "judgement"}


def better(by: str = ANN, **more: Any) -> Verdict:
    return Verdict(by, "response", 0, **more)


def rows_of(format: str, *tasks: Any, **terms: Any) -> list[dict[str, Any]]:
    made = export(a_round(*tasks), format, Terms(**terms))
    return [json.loads(line) for line in made.content.decode().splitlines()]


def removed(format: str, *tasks: Any, **terms: Any) -> dict[str, int]:
    made = export(a_round(*tasks), format, Terms(**terms))
    return {rule["rule"]: rule["removed"] for rule in made.manifest["rules"] if rule["removed"]}


# Rows


def test_trl_rows() -> None:
    [row] = rows_of("trl", task(better(), prompt=PROMPT))
    assert row == {"prompt": MESSAGES, "chosen": [GOOD], "rejected": [BAD], **EXTRAS}
    [row] = rows_of("trl-implicit", task(better(), prompt=PROMPT))
    assert row == {"chosen": [*MESSAGES, GOOD], "rejected": [*MESSAGES, BAD], **EXTRAS}


@pytest.mark.parametrize("format", ["trl", "trl-implicit"])
def test_a_margin_stands_in_every_row_or_in_none(format: str) -> None:
    with_margin, without = task(better(margin=2.0), prompt=asked("1")), task(better(), prompt=asked("2"))
    assert [row["margin"] for row in rows_of(format, with_margin, without)] == [2.0, 0.0]
    assert "margin" not in rows_of(format, without)[0]


def test_openai_rows_have_nothing_more() -> None:
    [row] = rows_of("openai", task(better(margin=2.0), prompt=PROMPT))
    assert row == {
        "input": {"messages": MESSAGES, "tools": [], "parallel_tool_calls": True},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    }


def test_kto_rows() -> None:
    rows = rows_of("kto", task(better(), prompt=PROMPT))
    assert sorted(rows, key=lambda row: row["label"]) == [
        {"prompt": MESSAGES, "completion": [BAD], "label": False},
        {"prompt": MESSAGES, "completion": [GOOD], "label": True},
    ]


def test_hh_rows() -> None:
    [row] = rows_of("hh", task(better(), prompt=asked("hi", "hello", "why?\n\nreally?")))
    before = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nreally?\n\nAssistant: "
    assert row == {"chosen": before + "good", "rejected": before + "bad"}


@pytest.mark.parametrize("bad", ["a\n\nHuman: b", "a\n\nAssistant: b", "a\n\nAssistant:", "\n\nHuman: b"])
def test_what_reads_like_the_next_speaker_is_no_transcript(bad: str) -> None:
    for judged in (task(better(), texts=("good", bad)), task(better(), prompt=asked(bad))):
        assert rows_of("hh", judged) == []
        assert removed("hh", judged) == {"speaker": 1}


def test_what_a_transcript_cannot_be() -> None:
    assert removed("hh", task(better(), prompt=PROMPT)) == {"system": 1}


def test_what_only_looks_like_a_speaker_is_kept(tmp_path: Path) -> None:
    given = task(better(), texts=("Human: b\nHuman: c", "the\n\n Human: b"), prompt=asked("Assistant: ok"))
    [back] = there_and_back(tmp_path, a_round(given), "hh")
    assert back.new.digest == given.new.digest


@pytest.mark.parametrize("format", ["trl", "trl-implicit", "kto", "hh", "openai"])
def test_texts_that_cannot_be_read_are_left_out_and_counted(format: str) -> None:
    rows = 2 if format == "kto" else 1
    tasks = [task(better(), texts=("a\ud800", "b\0"), prompt=asked("1")), task(better(), prompt=asked("2"))]
    assert len(rows_of(format, *tasks)) == rows
    assert removed(format, *tasks) == {"text": rows}
    assert removed(format, task(better(), prompt=asked("\0"))) == {"text": rows}


def test_terms_reach_the_rows() -> None:
    judged = task(better(margin=1.0, corrected=1, correction="fair"))
    assert len(rows_of("trl", judged)) == 2
    assert len(rows_of("trl", judged, corrections=False)) == 1
    assert removed("trl", judged, min_margin=2.0) == {"no_margin": 1, "min_margin": 1}
    assert export(a_round(judged), "trl", Terms(min_margin=2.0)).manifest["terms"]["min_margin"] == 2.0


# Consumers


@pytest.fixture
def judged() -> Any:
    return a_round(
        task(better(margin=2.0), prompt=asked("hi", "سلام", "why?")),
        task(better(), Verdict(BOB, "tie"), prompt=asked("how \u202e \u2028 much?"), texts=("این", "it\tis 😀")),
        task(Verdict(ANN, "tie"), prompt=asked("who?")),
    )


@pytest.mark.parametrize("format", ["trl", "trl-implicit", "hh", "openai"])
def test_our_own_reader_for_training_takes_every_pair(format: str, judged: Any, tmp_path: Path) -> None:
    [path, _] = write(export(judged, format), tmp_path / "out.jsonl")
    loaded = read_preferences(SourceConfig(path=str(path)))
    assert [(p.prompt, p.chosen, p.rejected) for p in loaded.records] == [
        (judged.tasks[0].prompt, "good", "bad"),
        (judged.tasks[1].prompt, "این", "it\tis 😀"),
    ]
    if format.startswith("trl"):
        assert [(p.probability, p.margin) for p in loaded.records] == [(1.0, 2.0), (0.75, 0.0)]


def test_good_completions_are_demonstrations(judged: Any, tmp_path: Path) -> None:
    [path, _] = write(export(judged, "kto"), tmp_path / "out.jsonl")
    loaded = read_demonstrations(SourceConfig(path=str(path)))
    assert sorted(d.response for d in loaded.records) == ["bad", "good", "good", "این"]
    assert loaded.dropped == {"labelled as a bad response": 1}


@pytest.mark.slow
def test_datasets_and_trl_read_the_rows(judged: Any, tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl import extract_prompt
    from trl.data_utils import is_conversational, maybe_apply_chat_template, unpair_preference_dataset

    def table(format: str) -> Any:
        path, *_ = write(export(judged, format), tmp_path / f"{format}.jsonl")
        return load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))

    explicit, implicit, kto = table("trl"), table("trl-implicit"), table("kto")
    assert all(is_conversational(row) for data in (explicit, implicit, kto) for row in data)
    assert explicit.features["margin"].dtype == "float64"
    for row, same in zip(explicit, implicit, strict=True):
        split = extract_prompt(same)
        assert (split["prompt"], split["chosen"], split["rejected"]) == (row["prompt"], row["chosen"], row["rejected"])
    unpaired = unpair_preference_dataset(explicit.select_columns(["prompt", "chosen", "rejected"]))
    assert unpaired.column_names == kto.column_names
    assert {type(row["label"]) for row in kto} == {bool}

    class Template:
        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    texts = maybe_apply_chat_template(explicit[0], Template())
    assert (texts["chosen"], texts["rejected"]) == ("<assistant>good", "<assistant>bad")
    for format in ("hh", "openai"):
        assert len(table(format)) == 2
    flat = table("argilla-flat")
    assert flat["preference.responses.users"] == [[ANN], [ANN, BOB], [ANN]]
    assert flat[0]["prompt"][1] == {"role": "assistant", "content": "سلام"}


# Back


@pytest.mark.parametrize(
    ("verdict", "back"),
    [
        (Verdict(ANN, "response", 0), Verdict("import", "response", 0)),
        (Verdict(ANN, "tie"), Verdict("import", "tie")),
        (Verdict(ANN, "all_bad"), Verdict("import", "all_bad")),
        (Verdict(ANN, "ranking", ranking=((1,), (0,))), Verdict("import", "response", 1)),
    ],
)
def test_kto_rows_of_a_pair_come_back_as_its_judgement(verdict: Verdict, back: Verdict, tmp_path: Path) -> None:
    assert there_and_back(tmp_path, a_round(task(verdict, prompt=PROMPT)), "kto") == [task(back, prompt=PROMPT)]


def test_kto_rows_of_many_responses_come_back_as_good_before_bad(tmp_path: Path) -> None:
    given = task(Verdict(ANN, "ranking", ranking=((2,), (0, 1), (3,))), texts="abcd")
    [back] = there_and_back(tmp_path, a_round(given), "kto")
    assert back == task(Verdict("import", "response", 0), texts=("c", "d"))
    given = task(Verdict(ANN, "ranking", ranking=((2, 0), (1, 3))), texts="abcd")
    [back] = there_and_back(tmp_path, a_round(given), "kto")
    assert back == task(Verdict("import", "ranking", ranking=((2, 0), (1, 3))), texts="abcd")


def test_kto_rows_that_cannot_be_compared_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": str(n), "label": bool(n)} for n in range(2)]
    rows += [{"prompt": "b", "completion": "1", "label": True}, {"prompt": "c", "completion": "1", "label": 1}]
    rows += [{"prompt": "c", "completion": "1", "label": False}]
    rows += [{"prompt": "d", "completion": str(n), "label": True} for n in range(21)]
    rows += [{"prompt": "e", "completion": str(n), "label": False} for n in range(20)]
    path = tmp_path / "kto.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_file(path)
    [judged] = read.rounds
    assert [(t.prompt, t.verdicts[0].choice) for t in judged.tasks] == [
        (asked("a"), "response"),
        (asked("e"), "all_bad"),
    ]
    assert (judged.form.all_bad, judged.form.kind) == (True, "pair")
    assert read.left_out == {
        "responses labelled both ways": 1,
        "prompts with one response": 1,
        "prompts with more than 20 responses": 1,
    }


def test_pairs_of_a_ranking_come_back_as_tasks_of_two(tmp_path: Path) -> None:
    given = task(Verdict(ANN, "ranking", ranking=((2,), (0, 1))), texts="abc")
    back = there_and_back(tmp_path, a_round(given), "trl")
    meta = {"source": "judgement"}
    wanted = [task(Verdict("import", "response", 0), texts=texts, meta=meta) for texts in ("ca", "cb")]
    assert sorted(back, key=lambda t: t.new.digest) == sorted(wanted, key=lambda t: t.new.digest)


@pytest.mark.parametrize("format", ["trl", "trl-implicit", "hh", "openai", "kto"])
def test_an_export_of_what_came_back_is_the_export(format: str, tmp_path: Path) -> None:
    tasks = [
        task(better(margin=2.0), prompt=asked("hi", "ok", "1")),
        task(better(margin=3.0), better(BOB, probability=0.6), prompt=asked("2")),
        task(better(corrected=0, correction="best"), prompt=asked("3")),
        task(Verdict(ANN, "ranking", ranking=((2,), (0, 1))), texts="abc", prompt=asked("4")),
    ]
    if format != "hh":
        tasks.append(task(better(), prompt=PROMPT))
    first = rows_of(format, *tasks)
    back = rows_of(format, *there_and_back(tmp_path, a_round(*tasks), format))
    lost = ("weight", "judgements", "source")
    assert sorted(json.dumps({k: v for k, v in row.items() if k not in lost}) for row in first) == sorted(
        json.dumps({k: v for k, v in row.items() if k not in lost}) for row in back
    )


def test_a_pair_that_stands_twice_is_judged_by_two(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "x", "rejected": "y"}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (row, row | {"chosen": "y", "rejected": "x"}, row)))
    read = read_file(path)
    [found] = read.rounds[0].tasks
    x = chose("x", found)
    assert [(v.by, v.response) for v in found.verdicts] == [("import", x), ("import 2", 1 - x), ("import 3", x)]
    assert read.format == "trl"


def test_other_formats_that_hold_preferences_can_be_read(tmp_path: Path) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "probability_b_preferred": 0.8, "source": "elsewhere"}
    rows = [row, {**row, "prompt": "r", "probability_b_preferred": 0.5}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    read = read_file(path)
    first, second = read.rounds[0].tasks
    assert read.format == "judged"
    assert first.verdicts == (Verdict("import", "response", chose("y", first), probability=0.8),)
    assert (second.verdicts, first.meta) == ((Verdict("import", "tie"),), {"source": "elsewhere"})


def test_bad_rows_are_named_together(tmp_path: Path) -> None:
    good = {"prompt": "q", "chosen": "x", "rejected": "y"}
    rows = [good, good | {"chosen": 3}, good | {"rejected": None}, good | {"prompt": ""}, good | {"chosen": "y"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + "{\n")
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert "4 of 6 rows cannot be used (read as trl); nothing was imported" in str(caught.value)
    assert [line.split(": ")[0].rsplit(":", 1)[1] for line in caught.value.details] == ["2", "3", "4", "6"]


def test_kto_needs_a_label(tmp_path: Path) -> None:
    path = tmp_path / "kto.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "label": "perhaps"}\n')
    with pytest.raises(DataError, match="label is 'perhaps', wanted true or false"):
        read_file(path)
