"""Each format is recognised by its columns and comes to the same prompt and responses; each broken rule has a name."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_pipeline.data.formats import COLUMNS, FORMATS, Exchange, RowProblem, detect
from rlhf_pipeline.records import Message, Preference, Prompt

USER = {"role": "user", "content": "Why is the sky blue?"}
GOOD = {"role": "assistant", "content": "Blue light scatters most."}
BAD = {"role": "assistant", "content": "It reflects the sea."}
HUMAN = {"from": "human", "value": USER["content"]}
GPT_GOOD = {"from": "gpt", "value": GOOD["content"]}
GPT_BAD = {"from": "gpt", "value": BAD["content"]}
TRANSCRIPT = f"\n\nHuman: {USER['content']}\n\nAssistant: "
TEXT = {"prompt": USER["content"], "chosen": GOOD["content"], "rejected": BAD["content"]}

PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "TRL standard": ("preference", TEXT),
    "TRL conversational": ("preference", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
    "whole dialogues beside a plain prompt": (
        "preference",
        {"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ),
    "transcript as the prompt": (
        "preference",
        {"prompt": TRANSCRIPT, "chosen": GOOD["content"], "rejected": BAD["content"]},
    ),
    "TRL implicit standard": (
        "implicit-preference",
        {"chosen": f"{USER['content']} {GOOD['content']}", "rejected": f"{USER['content']} {BAD['content']}"},
    ),
    "TRL implicit conversational": ("implicit-preference", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
    "HH-RLHF": ("hh", {"chosen": TRANSCRIPT + GOOD["content"], "rejected": TRANSCRIPT + BAD["content"]}),
    "ShareGPT paired": ("sharegpt-preference", {"conversations": [HUMAN], "chosen": GPT_GOOD, "rejected": GPT_BAD}),
    "Alpaca paired": (
        "alpaca-preference",
        {"instruction": USER["content"], "input": "", "chosen": GOOD["content"], "rejected": BAD["content"]},
    ),
    "OpenAI": (
        "openai-preference",
        {"input": {"messages": [USER], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ),
    "judged": (
        "judged",
        {
            "prompt": USER["content"],
            "response_a": BAD["content"],
            "response_b": GOOD["content"],
            "probability_b_preferred": 1.0,
        },
    ),
}
SINGLES: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt and completion": ("prompt-completion", {"prompt": USER["content"], "completion": GOOD["content"]}),
    "prompt and completion messages": ("prompt-completion", {"prompt": [USER], "completion": [GOOD]}),
    "prompt and response": ("prompt-response", {"prompt": USER["content"], "response": GOOD["content"]}),
    "messages": ("messages", {"messages": [USER, GOOD]}),
    "ShareGPT": ("sharegpt", {"conversations": [HUMAN, GPT_GOOD]}),
    "ShareGPT with roles": ("sharegpt", {"conversations": [USER, GOOD]}),
    "Alpaca": ("alpaca", {"instruction": USER["content"], "input": "", "output": GOOD["content"]}),
}


def converted(row: dict[str, Any]) -> Exchange:
    known = detect(row)
    assert known is not None
    return known.convert(row)


def turns(exchange: Exchange) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in exchange.messages]


def problem(row: dict[str, Any]) -> str:
    with pytest.raises(RowProblem) as caught:
        converted(row)
    return str(caught.value)


@pytest.mark.parametrize(("name", "row"), PAIRS.values(), ids=PAIRS)
def test_every_paired_format_comes_to_the_same_exchange(name: str, row: dict[str, Any]) -> None:
    known = detect(row)
    assert known is not None
    assert known.name == name
    exchange = known.convert(row)
    assert turns(exchange) == [("user", USER["content"])]
    assert exchange.responses == (GOOD["content"], BAD["content"])


@pytest.mark.parametrize(("name", "row"), SINGLES.values(), ids=SINGLES)
def test_every_demonstration_format_comes_to_the_same_exchange(name: str, row: dict[str, Any]) -> None:
    known = detect(row)
    assert known is not None
    assert known.name == name
    exchange = known.convert(row)
    assert turns(exchange) == [("user", USER["content"])]
    assert exchange.responses == (GOOD["content"],)


@pytest.mark.parametrize(
    ("name", "row"),
    [("prompts", {"prompt": "Hi"}), ("prompts", {"prompt": [USER]}), ("alpaca-prompts", {"instruction": "Hi"})],
)
def test_prompts_alone(name: str, row: dict[str, Any]) -> None:
    known = detect(row)
    assert known is not None
    assert known.name == name
    assert known.convert(row).responses == ()


def test_extra_columns_do_not_matter_and_a_null_column_is_absent() -> None:
    assert detect({"prompt": "Hi", "chosen": None, "rejected": None, "id": 3}) is FORMATS["prompts"]
    assert detect({"question": "Hi"}) is None


def test_every_column_a_format_needs_can_be_mapped() -> None:
    assert {column for known in FORMATS.values() for column in known.needs} <= set(COLUMNS)


def test_own_preferences_come_back_whole() -> None:
    prompt = Prompt((Message("system", "Be kind."), Message("user", "Hi")))
    own = Preference(prompt, "Hello!", "What?", 0.75, 1.5, "people", 4, {"late": 1})
    exchange = converted(own.to_json())
    assert exchange.messages == prompt.messages
    assert exchange.responses == ("Hello!", "What?")
    found = (exchange.probability, exchange.margin, exchange.source, exchange.judgements, exchange.meta)
    assert found == (0.75, 1.5, "people", 4, {"late": 1})


@pytest.mark.parametrize(
    ("probability", "better", "likely"), [(0.9, "b", 0.9), (0.2, "a", 0.8), ("0.75", "b", 0.75), (0, "a", 1.0)]
)
def test_judged_pairs_put_the_more_probable_first(probability: float, better: str, likely: float) -> None:
    row = {"prompt": "p", "response_a": "a", "response_b": "b", "probability_b_preferred": probability}
    exchange = converted(row)
    assert exchange.responses[0] == better
    assert exchange.probability == pytest.approx(likely)


def test_sound_rows_that_teach_nothing_are_left_out_not_refused() -> None:
    judged = {"prompt": "p", "response_a": "a", "response_b": "b", "probability_b_preferred": 0.5}
    assert converted(judged).left_out == "tie"
    assert converted({**TEXT, "rejected": TEXT["chosen"]}).left_out == "identical responses"
    assert converted({"prompt": "p", "completion": "c", "label": False}).left_out == "labelled as a bad response"
    assert converted({"prompt": "p", "completion": "c", "label": True}).left_out == ""


@pytest.mark.parametrize("dialogue", [[USER, GOOD], TRANSCRIPT + GOOD["content"]])
def test_identical_dialogues_still_have_a_prompt(dialogue: Any) -> None:
    exchange = converted({"chosen": dialogue, "rejected": dialogue})
    assert turns(exchange) == [("user", USER["content"])]
    assert exchange.left_out == "identical responses"


def test_alpaca_input_and_history() -> None:
    row = {"instruction": "Translate.", "input": "chat", "output": "cat", "history": [["Hi", "Hello"]], "system": "S"}
    assert turns(converted(row)) == [
        ("system", "S"),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Translate.\n\nchat"),
    ]


def test_a_system_column_yields_to_the_conversation_s_own() -> None:
    own = {"role": "system", "content": "Own."}
    assert turns(converted({"messages": [USER, GOOD], "system": "Column."}))[0] == ("system", "Column.")
    assert turns(converted({"messages": [own, USER, GOOD], "system": "Column."}))[0] == ("system", "Own.")
    assert len(converted({"messages": [{**own, "content": " "}, USER, GOOD]}).messages) == 1


def test_hh_dialogue_splits_at_the_last_turn() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"
    exchange = converted({"chosen": start + " Fine.", "rejected": start + " No:\n\n1. x"})
    assert turns(exchange) == [("user", "Hi"), ("assistant", "Hello"), ("user", "And?")]
    assert exchange.responses == ("Fine.", "No:\n\n1. x")


def test_hh_turns_of_one_speaker_in_a_row_are_one_turn() -> None:
    start = "\n\nHuman: Hi\n\nHuman: again"
    row = {"chosen": f"{start}\n\nAssistant: a\n\nAssistant: b", "rejected": f"{start}\n\nAssistant: c"}
    assert turns(converted(row)) == [("user", "Hi\n\nagain")]
    assert converted(row).responses == ("a\n\nb", "c")


def test_implicit_prompt_never_tears_a_word() -> None:
    exchange = converted({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert turns(exchange) == [("user", "The sky is")]
    assert exchange.responses == ("blue.", "black.")


def test_text_is_kept_exactly() -> None:
    said = " \tdef f():\n    return 'é\u2028'\n"
    exchange = converted({"prompt": [{"role": "user", "content": f"{said} "}], "chosen": said, "rejected": "x"})
    assert exchange.messages[0].content == f"{said} "
    assert exchange.responses[0] == said


@pytest.mark.parametrize(
    ("row", "reason", "found"),
    [
        ({**TEXT, "chosen": 3}, "wrong type", "chosen is a number"),
        ({**TEXT, "prompt": {"a": 1}}, "wrong type", "prompt is an object"),
        ({**TEXT, "prompt": " \n"}, "empty turn", "message 1 (user)"),
        ({**TEXT, "prompt": []}, "no prompt", "no user message"),
        ({**TEXT, "prompt": [USER, GOOD]}, "prompt does not end with the user", "assistant"),
        ({**TEXT, "prompt": [GOOD]}, "turns out of order", "message 1 is the assistant's"),
        ({**TEXT, "prompt": [USER, USER]}, "turns out of order", "message 2 is the user's"),
        ({**TEXT, "prompt": [USER, {"role": "system", "content": "s"}]}, "turns out of order", "system"),
        ({**TEXT, "prompt": [{"role": "tool", "content": "x"}]}, "unknown role", "'tool'"),
        ({**TEXT, "prompt": ["Hi"]}, "wrong type", "prompt[1] is text"),
        ({**TEXT, "prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "wrong type", "prompt[1] is a list"),
        ({**TEXT, "chosen": [GOOD, USER, GOOD]}, "not one response", "assistant, user, assistant"),
        ({**TEXT, "chosen": [USER]}, "not one response", "user"),
        ({**TEXT, "chosen": "a\0b"}, "NUL character", "position 1"),
        ({**TEXT, "chosen": "\ud800"}, "broken character", "surrogate"),
        ({**TEXT, "probability": 0.3}, "probability out of range", "0.3"),
        ({**TEXT, "margin": "wide"}, "wrong type", "margin is 'wide'"),
        ({**TEXT, "margin": 10**400}, "wrong type", "wanted a number"),
        ({**TEXT, "system": 1}, "wrong type", "system is a number"),
        ({"chosen": "a b", "rejected": "c d"}, "no common prompt", "begin differently"),
        ({"chosen": "a b", "rejected": "a b"}, "no common prompt", "one text"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, "no common prompt", ""),
        ({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD]}, "no common prompt", "after the 1 messages"),
        ({"chosen": TRANSCRIPT + "a", "rejected": "b"}, "not a transcript", "rejected begins with 'b'"),
        ({"input": "x", "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "wrong type", "input"),
        ({"instruction": "i", "output": "o", "history": [["q"]]}, "wrong type", "history"),
        (
            {"prompt": "p", "response_a": "a", "response_b": "b", "probability_b_preferred": 1.5},
            "probability out of range",
            "1.5",
        ),
        (
            {"prompt": "p", "response_a": "a", "response_b": "b", "probability_b_preferred": float("nan")},
            "wrong type",
            "nan",
        ),
    ],
)
def test_broken_rules_are_named(row: dict[str, Any], reason: str, found: str) -> None:
    text = problem(row)
    assert text.startswith(reason)
    assert found in text
