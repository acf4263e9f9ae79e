"""How many judgements does it take? Votes weighed by reliability against the majority, on the pocket model's responses.

    python benchmarks/reliability.py --out benchmarks/reliability.md

The pocket model answers each prompt twice. Simulated annotators, two of each kind, judge the pairs through the same
records as people do; the gold judge knows which response is better. Every vote on a pair is by another annotator, drawn
by lot. What counts is how often the preference that comes out is the better response (a tie is half right).
"""

from __future__ import annotations

import argparse
import datetime
import random
import statistics
from dataclasses import replace
from pathlib import Path

from rlhf_pipeline.aggregate import Counting, Rule, aggregate
from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.generation import generate
from rlhf_pipeline.models import load_causal_lm
from rlhf_pipeline.pocket.annotators import PANEL, UNREADABLE, SimulatedAnnotator
from rlhf_pipeline.pocket.grammar import prompts as pocket_prompts
from rlhf_pipeline.pocket.judge import gold
from rlhf_pipeline.store.records import JudgementRow, NewResponse, NewTask, StoredResponse, TaskRow
from rlhf_pipeline.tokenization import load_tokenizer

KINDS = ("Ada the expert", "Carla the careless", "Dimitri who likes the left", "Finn the contrarian")
CROWD = [replace(PANEL[kind], name=f"{kind} {number}") for number in (1, 2) for kind in KINDS]
RULES: tuple[Rule, ...] = ("majority", "dawid_skene", "noisy_bradley_terry")


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("--prompts", type=int, default=400)
    arguments.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    tasks, scores = sampled(given.prompts)
    overlaps = range(1, len(CROWD) + 1)
    found: dict[Rule, list[list[float]]] = {rule: [] for rule in RULES}
    for overlap in overlaps:
        for rule in RULES:
            found[rule].append([accuracy(tasks, scores, overlap, rule, seed) for seed in given.seeds])
        print(overlap, *(f"{rule} {statistics.mean(found[rule][-1]):.1%}" for rule in RULES), flush=True)
    text = table(given.prompts, len(tasks), found, len(given.seeds))
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


def sampled(count: int) -> tuple[list[TaskRow], dict[int, float]]:
    """Pairs of different responses of which one is better, and the gold score of each response by its id."""
    model = ModelConfig(name="pocket")
    chat = load_tokenizer(model)
    prompts = pocket_prompts(count, 1)
    drawn = generate(
        load_causal_lm(model, device="cpu"),
        [chat.encode_prompt(prompt.messages) for prompt in prompts for _ in range(2)],
        stop_ids=chat.stop_ids,
        pad_id=chat.pad_id,
        max_new_tokens=96,
        temperature=1.0,
        top_p=1.0,
        seed=0,
        batch_size=200,
    )
    tasks, scores = [], {}
    for number, prompt in enumerate(prompts):
        pair = [(chat.decode_response(one.ids), one.ended) for one in drawn[2 * number : 2 * number + 2]]
        values = [gold(prompt.messages, text, ended) for text, ended in pair]
        first, second = (UNREADABLE if value is None else value for value in values)
        if pair[0][0] == pair[1][0] or abs(first - second) < 1e-9:
            continue
        ids = 2 * number, 2 * number + 1
        scores |= dict(zip(ids, (first, second), strict=True))
        responses = tuple(StoredResponse(i, text, None, "") for i, (text, _) in zip(ids, pair, strict=True))
        digest = NewTask(prompt, tuple(NewResponse(response.text) for response in responses)).digest
        tasks.append(TaskRow(number, digest, prompt, responses, 1, 1, "closed", {}))
    return tasks, scores


def accuracy(tasks: list[TaskRow], scores: dict[int, float], overlap: int, rule: Rule, seed: int) -> float:
    """How often the better response comes out, each pair judged by so many of the crowd."""
    lot = random.Random(f"{seed}:{overlap}")
    rows = [
        judgement(task, person, scores, lot, number * len(CROWD) + place)
        for number, task in enumerate(tasks)
        for place, person in enumerate(lot.sample(CROWD, overlap))
    ]
    preferences, _ = aggregate(tasks, rows, source="simulated", counting=Counting(rule))
    better = {(task.prompt.id, max(task.responses, key=lambda response: scores[response.id]).text) for task in tasks}
    right = sum(0.5 if p.tie else (p.prompt.id, p.chosen) in better for p in preferences)
    return right / len(tasks)


def judgement(
    task: TaskRow, person: SimulatedAnnotator, scores: dict[int, float], lot: random.Random, number: int
) -> JudgementRow:
    """One person's answer, with the responses on sides by lot."""
    left, right = lot.sample(task.responses, 2)
    words = [len(response.text.split()) for response in (left, right)]
    said = person.judge(lot, scores[left.id], scores[right.id], *words)
    chosen = {"a": left.id, "b": right.id}.get(said)
    return JudgementRow(
        id=number,
        assignment_id=number,
        task_id=task.id,
        user_id=CROWD.index(person),
        user=person.name,
        choice="response" if chosen is not None else "tie" if said == "tie" else "all_bad",
        response_id=chosen,
        left_id=left.id,
        probability=None,
        margin=None,
        revision=1,
        late=False,
        received_at=0,
        active_ms=None,
    )


def table(prompts: int, pairs: int, found: dict[Rule, list[list[float]]], seeds: int) -> str:
    """The results in Markdown: accuracy by judgements, and how many more of them the majority needs for the same."""
    lines = [
        "# Judgements that it takes: reliability against majority\n",
        f"`python benchmarks/reliability.py --out benchmarks/reliability.md`, {datetime.date.today():%d %B %Y}\n",
        f"{pairs} pairs of different responses of the pocket model to {prompts} prompts, judged by a crowd of eight:",
        "two each of expert, careless, position-biased and contrarian (`rlhf_pipeline/pocket/annotators.py`). Share of",
        f"the pairs whose better response comes out, mean over {seeds} draws of the crowd ± 1.96 standard errors. Last",
        "column: how many times as many judgements the majority needs for Dawid–Skene's accuracy (between rows by a",
        "straight line; > where even all eight do not reach it).\n",
        "| judgements per pair | majority | dawid_skene | noisy_bradley_terry | majority needs |",
        "| --- | --- | --- | --- | --- |",
    ]
    means = {rule: [statistics.mean(values) for values in rows] for rule, rows in found.items()}
    for place in range(len(means["majority"])):
        cells = [
            f"{100 * means[rule][place]:.1f} ± {196 * statistics.stdev(found[rule][place]) / seeds**0.5:.1f} %"
            for rule in RULES
        ]
        lines.append(
            f"| {place + 1} | {' | '.join(cells)} | {needed(means['majority'], means['dawid_skene'], place)} |"
        )
    return "\n".join(lines) + "\n"


def needed(majority: list[float], other: list[float], place: int) -> str:
    """The judgements per pair at which the majority is as good, as a multiple of those that the other had."""
    for after, value in enumerate(majority):
        if value >= other[place]:
            before = majority[after - 1] if after else value
            part = (other[place] - before) / (value - before) if value > before else 0.0
            return f"{(after + part) / (place + 1) if after else 1 / (place + 1):.1f} ×"
    return f"> {len(majority) / (place + 1):.1f} ×"


if __name__ == "__main__":
    main()
