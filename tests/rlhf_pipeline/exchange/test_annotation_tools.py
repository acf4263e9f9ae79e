"""Argilla and Label Studio: the exact forms, everything at once there and back, and files of others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rlhf_pipeline.errors import DataError, UsageError
from rlhf_pipeline.exchange import Verdict, argilla, export, read_file
from rlhf_pipeline.exchange.pseudonyms import number_of
from rlhf_pipeline.store.records import Attribute, Form, Gold
from tests.rlhf_pipeline.exchange.judged_rounds import (
    ANN,
    BOB,
    EVE,
    EVERYTHING,
    a_round,
    asked,
    chose,
    task,
    there_and_back,
)

RANKING = replace(EVERYTHING, kind="ranking", strength=False)
FULL = Verdict(
    ANN,
    "response",
    1,
    strength=3,
    margin=3.0,
    rules={0: ("is rude",), 1: ()},
    ratings={0: {"helpful": 1, "اختصار": 2}, 1: {"helpful": 5, "اختصار": 3}},
    flags=("personal data", "not English"),
    comment="<b>\"so\"</b> & \u202eabc\n",
    corrected=1,
    correction="  better ",
    active_ms=4288,
    received_at=1_700_000_000_123,
)  # fmt: skip
SKIPPED = Verdict(BOB, "skip", flags=("personal data",), comment="a name")


def rows_of(format: str, *tasks: Any, form: Form = EVERYTHING) -> list[dict[str, Any]]:
    text = export(a_round(*tasks, form=form), format).content.decode()
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def write_rows(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def without(verdict: Verdict, *names: str) -> Verdict:
    blank = Verdict("", "skip")
    return replace(verdict, **{name: getattr(blank, name) for name in names})


# Label Studio


def test_label_studio_row_is_the_form_of_its_documentation() -> None:
    one = task(
        replace(
            FULL,
            rules={},
            ratings={},
            corrected=None,
            correction=None,
            flags=(),
            comment=None,
            strength=None,
            margin=None,
        )
    )
    [row] = rows_of("label-studio", one)
    shown = ["bad", "good"] if chose("bad", one) == 0 else ["good", "bad"]
    assert row["data"] | {"prompt": "why?", "answer1": shown[0], "answer2": shown[1]} == row["data"]
    [annotation] = row["annotations"]
    assert annotation == {
        "id": 1,
        "completed_by": number_of(ANN),
        "was_cancelled": False,
        "ground_truth": False,
        "lead_time": 4.288,
        "created_at": "2023-11-14T22:13:20.123Z",
        "result": [
            {
                "id": "1-comparison",
                "from_name": "comparison",
                "to_name": "answer1,answer2",
                "type": "pairwise",
                "value": {"selected": "left" if shown[0] == "bad" else "right"},
            }
        ],
    }
    assert row["predictions"] == []


@pytest.mark.parametrize("form", [EVERYTHING, RANKING])
def test_every_result_has_its_control_in_the_configuration(form: Form) -> None:
    said = FULL if form.kind == "pair" else replace(
        FULL, choice="ranking", response=None, ranking=((1,), (0,)), strength=None, margin=1.5, probability=0.9
    )  # fmt: skip
    made = export(a_round(task(said, replace(said, by=BOB)), form=form), "label-studio")
    root = ElementTree.fromstring(made.beside[".config.xml"])
    objects = {tag.get("name"): tag.get("value") for tag in root.iter("Text")}
    controls = {tag.get("name"): tag for tag in root.iter() if tag.get("toName")}
    [row] = json.loads(made.content)
    for variable in objects.values():
        assert variable[1:] in row["data"]
    results = [result for annotation in row["annotations"] for result in annotation["result"]]
    assert len(results) > 20
    for result in results:
        control = controls[result["from_name"]]
        assert control.get("toName") == result["to_name"]
        assert set(result["to_name"].split(",")) <= set(objects)
        assert control.tag.lower() == result["type"]
        if result["type"] == "choices":
            assert set(result["value"]["choices"]) <= {choice.get("alias") for choice in control.iter("Choice")}
    assert len({result["id"] for result in results}) == len(results)
    assert {choice.get("value") for choice in controls["rules_1"].iter("Choice")} >= set(form.rules)


@pytest.mark.parametrize("form", [EVERYTHING, RANKING])
def test_label_studio_brings_back_everything_that_was_said(form: Form, tmp_path: Path) -> None:
    said = [FULL, SKIPPED, Verdict(EVE, "all_bad", rules={0: (), 1: ()}, purpose="adjudicate", probability=0.75)]
    if form.kind == "ranking":
        said[0] = replace(FULL, choice="ranking", response=None, ranking=((0, 2), (1,)), strength=None, margin=None)
    given = task(*said, texts=("a", "b", "c") if form.kind == "ranking" else ("a", "b"), meta={"k": [1, "\u2028"]})
    [back] = there_and_back(tmp_path, a_round(given, form=form), "label-studio")
    assert back.verdicts == tuple(replace(v, by=str(number_of(v.by))) for v in given.verdicts)
    assert (back.prompt, back.responses, back.meta) == (given.prompt, given.responses, given.meta)
    assert rows_of("label-studio", back, form=form) == rows_of("label-studio", given, form=form)


def test_tasks_of_several_sizes_go_into_one_label_studio_project(tmp_path: Path) -> None:
    two = task(Verdict(ANN, "ranking", ranking=((1,), (0,))), texts=("a", "b"))
    three = task(Verdict(ANN, "ranking", ranking=((1,), (0,), (2,))), texts=("a", "b", ""), prompt=asked("how?"))
    back = there_and_back(tmp_path, a_round(two, three, form=RANKING), "label-studio")
    assert [t.new.digest for t in back] == [two.new.digest, three.new.digest]
    for row in rows_of("label-studio", two, three, form=RANKING):
        assert {"answer1", "answer2", "answer3"} <= set(row["data"])


def test_a_label_studio_file_that_is_not_ours(tmp_path: Path) -> None:
    def result(kind: str, name: str, value: Any) -> dict[str, Any]:
        return {"from_name": name, "to_name": "answer1,answer2", "type": kind, "value": value}

    annotations = [
        {"completed_by": 7, "was_cancelled": False, "result": [result("pairwise", "c", {"selected": "right"})]},
        {"completed_by": {"id": 8, "email": "x@y"}, "result": [result("pairwise", "c", {"selected": "left"})]},
        {"was_cancelled": True, "result": []},
        {"result": [result("choices", "preference", {"choices": ["tie"]}), result("taxonomy", "t", {"taxonomy": []})]},
    ]
    row = {"id": 3, "data": {"prompt": "q", "answer1": "x", "answer2": "y"}, "annotations": annotations}
    read = read_file(write_rows(tmp_path / "project.json", [row]))
    [found] = [t for judged in read.rounds for t in judged.tasks]
    y = chose("y", found)
    assert [(v.by, v.choice, v.response) for v in found.verdicts] == [
        ("7", "response", y),
        ("8", "response", 1 - y),
        ("import", "skip", None),
        ("import 2", "tie", None),
    ]
    assert read.left_out == {"answers to t, which this program does not ask": 1}


def test_of_two_annotations_by_one_person_the_last_counts(tmp_path: Path) -> None:
    def annotation(side: str) -> dict[str, Any]:
        value = {"from_name": "c", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": side}}
        return {"completed_by": 7, "result": [value]}

    row = {
        "data": {"prompt": "q", "answer1": "x", "answer2": "y"},
        "annotations": [annotation("left"), annotation("right")],
    }
    read = read_file(write_rows(tmp_path / "project.json", [row]))
    [found] = read.rounds[0].tasks
    assert [v.response for v in found.verdicts] == [chose("y", found)]
    assert read.left_out == {"judgements that their judge made anew": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"prompt": "q", "answer1": "x"}}, "data.answer2 is missing, wanted text"),
        ({"data": {"prompt": "q", "answer1": "x", "answer2": "x"}}, "the same text"),
        ({"data": {"prompt": 3, "answer1": "x", "answer2": "y"}}, "data.prompt is a number"),
        ({"annotations": [{"result": []}]}, "no judgement: answered: nothing; wanted preference or ranking"),
        ({"annotations": [{"result": 3}]}, "annotations[1].result is a number, wanted a list"),
        ({"annotations": [{"completed_by": -1, "result": []}]}, "completed_by is -1"),
        ({"annotations": [{"created_at": "noon", "result": []}]}, "created_at is 'noon'"),
        ({"annotations": [{"created_at": "1900-01-01", "result": []}]}, "created_at is -22089888"),
        ({"annotations": [{"lead_time": 1e308, "result": []}]}, "lead_time is 1e+308, wanted 0 to 1e+09"),
        ({"annotations": [{"completed_by": 10**30, "result": []}]}, "completed_by is 1000000000"),
    ],
)
def test_bad_label_studio_rows_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    row = {"data": {"prompt": "q", "answer1": "x", "answer2": "y"}, "annotations": []} | change
    with pytest.raises(DataError) as caught:
        read_file(write_rows(tmp_path / "project.json", [row]))
    assert said in str(caught.value)
    assert "project.json:1: " in caught.value.details[0]


# Argilla


def test_argilla_record_is_what_to_list_gives() -> None:
    [row] = rows_of("argilla", task(Verdict(ANN, "response", 0), Verdict(EVE, "tie")))
    assert set(row) == {
        "id", "status", "fields", "metadata", "vectors", "suggestions", "responses", "_server_id"
    }  # fmt: skip
    assert row["status"] == "completed"
    assert row["fields"]["prompt"] == [{"role": "user", "content": "why?"}]
    name = next(name for name, text in row["fields"].items() if text == "good")
    assert row["responses"] == {
        "preference": [{"value": name, "user_id": ANN}, {"value": "tie", "user_id": argilla.user_id(EVE)}]
    }


def test_flattened_rows_have_the_columns_of_the_hub_and_all_the_same() -> None:
    rows = rows_of("argilla-flat", task(Verdict(ANN, "response", 0), SKIPPED), task(prompt=asked("how?")))
    assert [set(row) for row in rows] == [set(rows[0])] * 2
    first, second = rows
    name = next(name for name, text in first.items() if text == "good")
    assert first["preference.responses"] == [name, None]
    assert first["preference.responses.users"] == [ANN, BOB]
    assert first["preference.responses.status"] == ["submitted", "discarded"]
    assert (second["preference.responses"], second["status"]) == (None, "pending")


RANKED = replace(
    FULL, choice="ranking", response=None, ranking=((1,), (0, 2)), strength=None, margin=None, active_ms=None
)


@pytest.mark.parametrize("format", ["argilla", "argilla-flat"])
@pytest.mark.parametrize("form", [EVERYTHING, RANKING])
def test_argilla_brings_back_everything_that_was_said(form: Form, format: str, tmp_path: Path) -> None:
    first = RANKED if form.kind == "ranking" else FULL
    said = [first, *([SKIPPED] if format == "argilla-flat" else []), Verdict(EVE, "all_bad", rules={0: (), 1: ()})]
    given = task(*said, texts=("a", "b", "c") if form.kind == "ranking" else ("a", "b"), meta={"k": [1, "\u2028"]})
    [back] = there_and_back(tmp_path, a_round(given, form=form), format)
    wanted = {v.by: without(v, "active_ms", "received_at") for v in given.verdicts}
    wanted[argilla.user_id(EVE)] = replace(wanted.pop(EVE), by=argilla.user_id(EVE))
    assert {v.by: v for v in back.verdicts} == wanted
    assert (back.prompt, back.responses, back.meta) == (given.prompt, given.responses, given.meta)


@pytest.mark.parametrize(
    ("ranking", "groups", "ties"),
    [
        (((0,), (1,), (2,)), ["a", "b", "c"], "1>2>3"),
        (((2,), (0, 1)), ["c", "ab"], "1>2=3"),
        (((0, 1), (2,)), ["ab", "c"], "1=2>3"),
        (((0, 1, 2),), ["abc"], "1=2=3"),
    ],
)
def test_ties_of_a_ranking_are_a_label_of_their_own(ranking: Any, groups: list[str], ties: str) -> None:
    form = Form(kind="ranking")
    [row] = rows_of("argilla", task(Verdict(ANN, "ranking", ranking=ranking), texts="abc"), form=form)
    [answer] = row["responses"]["ranking"]
    shown = "".join(row["fields"][name] for name in answer["value"])
    for group in groups:  # those that are tied stand together, in any order
        assert set(shown[: len(group)]) == set(group)
        shown = shown[len(group) :]
    assert row["responses"]["ties"] == [{"value": ties, "user_id": ANN}]
    settings = json.loads(export(a_round(task(texts="abc"), form=form), "argilla").beside[".settings.json"])
    [question] = [q for q in settings["questions"] if q["name"] == "ties"]
    assert {"value": ties, "text": ties} in question["settings"]["options"]
    assert len(question["settings"]["options"]) == 4


def test_ranks_as_argillas_server_keeps_them(tmp_path: Path) -> None:
    ranks = [{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}, {"value": "response_3", "rank": 2}]
    row = {
        "fields": {"prompt": "q", "response_1": "x", "response_2": "y", "response_3": "z"},
        "responses": {"ranking": [{"value": ranks, "user_id": ANN}]},
    }
    [judged] = read_file(write_rows(tmp_path / "records.json", [row])).rounds
    [found] = judged.tasks
    assert judged.form.kind == "ranking"
    assert found.verdicts[0].ranking == ((chose("y", found),), tuple(sorted((chose("x", found), chose("z", found)))))


def test_flattened_records_of_others_with_drafts_and_columns_like_ours(tmp_path: Path) -> None:
    row = {
        "prompt": "q", "response_1": "x", "response_2": "y", "meta": {"a": 1}, "form": 3,
        "preference.responses": ["response_2", "response_1", None],
        "preference.responses.users": [ANN, BOB, "someone"],
        "preference.responses.status": ["submitted", "draft", "discarded"],
        "quality.responses": [3], "quality.responses.users": [ANN], "quality.responses.status": ["submitted"],
    }  # fmt: skip
    read = read_file(write_rows(tmp_path / "records.jsonl", [row]))
    [found] = read.rounds[0].tasks
    assert [(v.by, v.choice, v.response) for v in found.verdicts] == [
        (ANN, "response", chose("y", found)),
        ("someone", "skip", None),
    ]
    assert (read.format, found.meta) == ("argilla-flat", {})
    assert read.left_out == {"answers to quality, which this program does not ask": 1}


def test_settings_name_every_question_that_is_answered() -> None:
    for form, said in ((EVERYTHING, FULL), (RANKING, RANKED)):
        texts = "abc" if form.kind == "ranking" else "ab"
        made = export(a_round(task(said, texts=texts), form=form), "argilla")
        settings = json.loads(made.beside[".settings.json"])
        [record] = json.loads(made.content)
        questions = {question["name"]: question["settings"] for question in settings["questions"]}
        assert any(question["required"] for question in settings["questions"])
        assert {field["name"] for field in settings["fields"]} == set(record["fields"])
        for name, answers in record["responses"].items():
            options = [option["value"] for option in questions[name].get("options", [])]
            for value in answers[0]["value"] if isinstance(answers[0]["value"], list) else [answers[0]["value"]]:
                assert not options or value in options
        assert all(len(q["options"]) >= 2 for q in questions.values() if "options" in q)


def test_only_what_the_form_asks_is_asked() -> None:
    def questions(form: Form, texts: str = "ab") -> tuple[set[str], set[str], list[str]]:
        judged = a_round(task(texts=texts), form=form)
        root = ElementTree.fromstring(export(judged, "label-studio").beside[".config.xml"])
        controls = {tag.get("name"): tag for tag in root.iter() if tag.get("toName")}
        settings = json.loads(export(judged, "argilla").beside[".settings.json"])
        choices = [str(choice.get("alias")) for choice in controls["preference"].iter("Choice")]
        return {str(name) for name in controls}, {q["name"] for q in settings["questions"]}, choices

    always = {"preference", "strength", "comment"}
    numbers = {"probability", "margin"}
    verdict = ["tie", "all_bad"]
    assert questions(Form()) == (always | numbers | {"comparison"}, always, verdict)
    three = ["response_1", "response_2", "response_3"]
    assert questions(Form(), "abc") == (always | numbers, always, three + verdict)
    ranked = questions(Form(kind="ranking"))
    assert ranked == (always | numbers | {"rank_1", "rank_2"}, always - {"strength"} | {"ranking", "ties"}, verdict)
    per_response = {f"{kind}_{n}" for kind in ("rules", "correction", "rating_1", "rating_2") for n in (1, 2)}
    full = questions(EVERYTHING)
    assert full[0] == always | numbers | {"comparison", "flags"} | per_response
    assert full[1] == always | {"flags"} | per_response


def test_a_scale_that_argilla_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="helpful is rated from 1 to 11, Argilla's scale ends at 10"):
        export(a_round(task(), form=Form(attributes=(Attribute("helpful", points=11),))), "argilla")
    with pytest.raises(UsageError, match="10 responses to put in order"):
        export(a_round(task(texts="abcdefghij"), form=Form(kind="ranking")), "argilla-flat")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fields": {"prompt": "q", "response_1": "x"}}, "a task has 1 responses, wanted 2"),
        ({"fields": {"prompt": "q", "response_1": "x", "response_3": "y"}}, "wanted response_1, response_2"),
        ({"fields": {"prompt": [{"role": "assistant", "content": "x"}], "response_1": "x", "response_2": "y"}}, "user"),
        ({"responses": {"preference": [{"value": "response_3", "user_id": ANN}]}}, "preference is 'response_3'"),
        ({"responses": {"preference": [{"value": "tie"}]}}, "user_id is missing"),
        ({"responses": {"preference": [{"value": "tie", "user_id": "a\u0007"}]}}, "cannot be seen"),
        ({"responses": {"ranking": [{"value": ["response_1"], "user_id": ANN}]}}, "each of 2 responses once"),
        ({"metadata": {"form": "{", "sampled": "[]"}}, "the metadata form is"),
        ({"metadata": {"meta": "[]", "sampled": "[]"}}, "meta is a list, wanted an object"),
    ],
)
def test_bad_argilla_rows_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    row = {"fields": {"prompt": "q", "response_1": "x", "response_2": "y"}, "responses": {}} | change
    with pytest.raises(DataError) as caught:
        read_file(write_rows(tmp_path / "records.json", [row]))
    assert said in str(caught.value)


# Both


@pytest.mark.parametrize("format", ["argilla", "argilla-flat", "label-studio"])
def test_what_is_left_out_is_counted(format: str) -> None:
    tasks = [
        task(Verdict(ANN, "response", 0), Verdict(ANN, "tie", purpose="repeat"), prompt=asked("1")),
        task(Verdict(ANN, "response", 0, purpose="gold"), gold=Gold("tie"), prompt=asked("2")),
        task(Verdict(ANN, "tie"), texts=("a\0", "b"), prompt=asked("3")),
        task(Verdict(ANN, "tie", comment="\ud800"), Verdict(BOB, "tie"), prompt=asked("4")),
        task(Verdict(ANN, "response", 0), Verdict(ANN, "tie", purpose="adjudicate"), prompt=asked("5")),
        task(Verdict(ANN, "skip"), prompt=asked("6")),
        task(prompt=asked("7"), retired=True),
    ]
    made = export(a_round(*tasks), format)
    removed = {rule["rule"]: rule["removed"] for rule in made.manifest["rules"]}
    wanted = {"superseded": 0, "purpose": 2, "unjudged": 2, "text": 1, "remark": 1}
    wanted |= {"argilla": {"skip": 1, "twice": 1}, "argilla-flat": {"twice": 1}, "label-studio": {}}[format]
    assert removed == wanted
    assert made.manifest["rows"] == 4
