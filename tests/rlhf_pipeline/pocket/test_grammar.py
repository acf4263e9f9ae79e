"""The grammar's promises: size, determinism, distinct prompts, and that whatever it says is read back exactly."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rlhf_pipeline.pocket import phrases
from rlhf_pipeline.pocket.grammar import ASSISTANT, CROWD, Mixture, corpus, demonstrations, prompts
from rlhf_pipeline.pocket.judge import read
from rlhf_pipeline.pocket.requests import KINDS, read_request, write_opening
from rlhf_pipeline.pocket.responses import Attributes, write_response
from rlhf_pipeline.pocket.sentences import fact_sentence, inventory, read_sentence, split_sentences
from rlhf_pipeline.pocket.topics import harms, topics
from rlhf_pipeline.records import Message


def test_there_are_enough_topics_kinds_and_phrasings() -> None:
    assert len(topics()) >= 60
    assert len(harms()) >= 20
    assert len(KINDS) >= 10
    assert min(len(templates) for templates in phrases.REQUESTS.values()) >= 4
    assert min(len(templates) for templates in phrases.FACTS.values()) >= 3


def test_every_topic_has_true_and_false_facts_of_every_kind() -> None:
    for topic in topics().values():
        assert (len(topic.of("step", True)), len(topic.of("step", False))) == (3, 2), topic.id
        for kind in ("reason", "definition", "choice"):
            assert len(topic.of(kind, True)) == len(topic.of(kind, False)) == 1, topic.id


def test_every_sentence_of_a_fact_means_that_fact_alone() -> None:
    owners: dict[str, str] = {}
    for topic in topics().values():
        for fact in topic.facts:
            for template in phrases.FACTS[fact.kind]:
                sentence = fact_sentence(template, fact)
                assert split_sentences(sentence) == [sentence]
                owner = f"{topic.id} {fact.kind} {fact.true} {fact.text} {fact.option}"
                assert owners.setdefault(sentence.lower(), owner) == owner, sentence
                meaning = read_sentence(sentence)
                assert meaning is not None
                assert (meaning.topic, meaning.kind, meaning.true) == (topic.id, fact.kind, fact.true), sentence


def test_the_inventory_is_one_sentence_per_entry() -> None:
    assert len(inventory()) > 4000
    assert all(len(split_sentences(sentence)) == 1 and sentence[-1] in ".!?" for sentence in inventory())


def test_four_thousand_different_prompts_of_every_kind() -> None:
    asked = prompts(4000, seed=5)
    assert len({prompt.id for prompt in asked}) == 4000
    kinds = Counter(request.kind for request in (read_request(p.messages) for p in asked) if request is not None)
    assert sum(kinds.values()) == 4000, "every prompt is read back"
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 80
    assert sum(len(prompt.messages) > 1 for prompt in asked) >= 200, "dialogues of several turns"
    assert all(prompt.messages[-1].role == "user" for prompt in asked)


@pytest.mark.parametrize("make", [prompts, demonstrations, corpus])
def test_the_same_seed_gives_the_same_and_another_seed_something_else(make) -> None:  # type: ignore[no-untyped-def]
    assert make(50, 3) == make(50, 3)
    assert make(50, 3) != make(50, 4)
    assert make(50, 3)[:20] == make(20, 3), "fewer are the first of more"


@pytest.mark.parametrize("mixture", [ASSISTANT, CROWD])
def test_every_response_is_read_back_into_exactly_its_attributes(mixture: Mixture) -> None:
    rng = random.Random(11)
    for _ in range(1500):
        kind = rng.choice([kind for kind in KINDS if kind != "follow_up"])
        request, text = write_opening(rng, kind)
        messages = [Message("user", text)]
        assert read_request(messages) == request
        attributes = mixture.draw(rng, request)
        response = write_response(rng, request, attributes)
        reading = read(messages, response, ended=True)
        assert reading is not None
        assert reading.attributes == attributes, (text, response)
        assert reading.slips == 0


def test_follow_ups_are_read_with_the_topic_and_the_truth_of_what_came_before() -> None:
    rng = random.Random(2)
    forms = Counter()
    for prompt in prompts(3000, seed=8):
        if len(prompt.messages) == 1:
            continue
        request = read_request(prompt.messages)
        assert request is not None
        assert request.topic in topics()
        forms[request.form] += 1
        for mixture in (ASSISTANT, CROWD):
            attributes = mixture.draw(rng, request)
            reading = read(prompt.messages, write_response(rng, request, attributes), ended=True)
            assert reading is not None
            assert reading.attributes == attributes, prompt.messages
    assert set(forms) == {"next", "sure", "again", "why", "what", "choose", "complain", "thank"}


def test_demonstrations_have_the_announced_mixture() -> None:
    found = [read(d.prompt.messages, d.response, ended=True) for d in demonstrations(3000, seed=1)]
    attributes = [reading.attributes for reading in found if reading is not None]
    assert len(attributes) == 3000
    tones = Counter(one.tone for one in attributes)
    assert tones["warm"] / 3000 == pytest.approx(0.35, abs=0.03)
    assert tones["rude"] / 3000 == pytest.approx(0.15, abs=0.03)
    assert sum(one.content == "wrong" for one in attributes) / 3000 == pytest.approx(0.21, abs=0.04)
    assert sum(one.rambles for one in attributes) / 3000 == pytest.approx(0.09, abs=0.02)
    asked_harm = [reading for reading in found if reading is not None and reading.request.kind == "harm"]
    assert sum(reading.attributes.refuses for reading in asked_harm) / len(asked_harm) == pytest.approx(0.55, abs=0.08)


def test_people_react_in_the_corpus_to_what_was_wrong() -> None:
    rude = phrases.REACTIONS["rude"]
    after = [(turns[i - 1].content, turn.content) for turns in corpus(4000, 1) for i, turn in enumerate(turns) if i > 1]
    scolded = [before for before, said in after if said in rude]
    assert len(scolded) > 50
    for text in scolded:
        assert any(m is not None and m.tone == "rude" for m in map(read_sentence, split_sentences(text))), text


def test_a_response_without_tone_and_facts_still_says_something() -> None:
    rng = random.Random(0)
    request, _ = write_opening(rng, "thank")
    assert all(write_response(rng, request, Attributes("right", "plain", False, False, False)) for _ in range(200))


def _answers(told: str) -> list[tuple[str, str]]:
    """The last answers, and the remarks on them, of speakers who were told something."""
    dialogues = [turns for turns in corpus(6000, 2) if turns[0].role == "system" and told in turns[0].content]
    return [(turns[-2].content, turns[-1].content) for turns in dialogues if turns[-1].role == "user"]


@pytest.mark.parametrize(("told", "remark"), [("You are rude.", "How rude."), ("You are kind.", "How kind of you.")])
def test_speakers_keep_to_the_style_they_were_told(told: str, remark: str) -> None:
    answers = _answers(told)
    assert len(answers) > 100
    assert sum(remark in said for _, said in answers) / len(answers) > 0.8


def test_last_remarks_say_what_the_judge_reads() -> None:
    for answer, said in _answers("Come to the point."):
        tones = {meaning.tone for meaning in map(read_sentence, split_sentences(answer)) if meaning is not None}
        assert ("How rude." in said) == ("rude" in tones), answer
        assert ("How kind of you." in said) == ("warm" in tones), answer


def test_who_knows_is_mostly_right_and_who_makes_things_up_is_not() -> None:
    knowing, erring = _answers("You know what you are talking about."), _answers("You make things up.")
    right = [sum("That is right." in said for _, said in some) / len(some) for some in (knowing, erring)]
    assert right[0] > 0.6
    assert right[1] < 0.25
