"""Compare base, SFT, DPO and PPO on held-out prompts: win rates, scores, KL, length, and whether differences are real.

Every policy answers the same prompts once. Writes ``metrics.json`` (for programs) and ``responses.jsonl`` (one row per
prompt with every policy's response). Interrupted, it keeps each policy's finished steps and does the rest.

    rlhf run CONFIG evaluate
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from rlhf_pipeline import evaluation
from rlhf_pipeline.config import Section
from rlhf_pipeline.errors import ConfigError, DataError
from stages import evaluate_scores
from stages.job import Job
from stages.policies import BASE, REFERENCE, Policies
from stages.prompts import has_gold_judge

if TYPE_CHECKING:
    from rlhf_pipeline.records import Prompt
    from rlhf_pipeline.tokenization import ChatTokenizer

PolicyName = Literal["base", "sft", "dpo", "ppo"]
_ORDER = ("base", "sft", "dpo", "ppo")
_TOKENS = 8192  # tokens of one forward pass that computes log-probabilities
_UNREAD = 0.05  # a larger share of responses that the gold judge cannot read is said

Rows = list[dict[str, Any]]


class Config(Section):
    """What is compared, and by whom."""

    prompts: int = Field(300, ge=1)
    """How many held-out prompts; the interval of a win rate narrows with the square root of their number."""
    policies: list[PolicyName] | None = None
    """Which policies, beside ``sft`` that the others are compared with; null takes base and all that the run has."""
    judge: Literal["auto", "gold", "reward_model", "none"] = "auto"
    """Who decides: ``gold`` (only for the built-in prompts) or ``reward_model``; ``auto`` takes the first there is."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens after which a response is cut off."""
    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 1 samples the policies as trained, 0 takes the likeliest token (and gives no KL)."""
    batch_size: int = Field(64, ge=1)
    """Responses generated or scored at once; raising it is faster, takes more memory and changes rounding, by which
    a response may become another."""


def run(job: Job) -> dict[str, Any]:
    """Sample, measure, compare, say."""
    from rlhf_pipeline.records import write_jsonl
    from rlhf_pipeline.tokenization import load_tokenizer

    chat = load_tokenizer(job.settings.model)
    names, judge = _policies(job), _judge(job)
    prompts = _prompts(job)
    encoded = [chat.encode_prompt(prompt.messages) for prompt in prompts]
    answers = _Answers(job, names)
    folders = {name: job.inputs[name].folder for name in names if name != BASE}
    policies = Policies(job.settings.model, folders, device=job.device)

    with job.track("answering", len(names) * len(prompts)) as advance:
        for name in names:
            if not answers.fill(name, "ids", lambda n: _sample(job, policies, n, chat, encoded, advance)):
                advance(len(prompts))
    if job.config.temperature > 0:
        for name in names:
            answers.fill(name, "logprob", lambda n: _logprobs(job, policies, n, chat, encoded, answers[n]))
        for name in names:  # apart from the loop above: SFT may be a model of its own, which is then loaded once
            answers.fill(
                name, "sft_logprob", lambda n: _reference_logprobs(job, policies, n, chat, encoded, answers[n])
            )
    policies.close()
    rules: tuple[str, ...] = ()
    if "reward" in job.inputs:
        reward = evaluate_scores.RewardModelScores(job, policies.adapter_base(), chat.end_id)
        rules = reward.rules
        for name in names:
            answers.fill(name, "score", lambda n: reward.of(answers[n], prompts, encoded))
    if has_gold_judge(job):
        for name in names:
            answers.fill(name, "gold", lambda n: evaluate_scores.gold(prompts, answers[n]))

    measured = {name: _measure(answers[name], answers[REFERENCE], judge) for name in names}
    if rules:
        for name in names:
            measured[name]["rules"] = evaluate_scores.broken_shares(answers[name], rules)
    metrics: dict[str, Any] = {"policies": measured, "judge": judge, "summary": _summary(answers, judge)}
    (job.folder / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_jsonl(job.folder / "responses.jsonl", _response_rows(prompts, answers))
    for line in [*table(metrics), *evaluate_scores.rule_table(measured), *metrics["summary"]]:
        job.say(line)
    return metrics


def table(metrics: Mapping[str, Any]) -> list[str]:
    """The table of policies, as lines of text."""
    lines = [f"{'policy':8}{'win rate vs sft (95 %)':>29}{'gold':>8}{'score':>8}{'KL':>8}{'tokens':>8}{'ended':>8}"]
    for name, row in metrics["policies"].items():
        wins = "–"
        if row["win_rate"] is not None:
            wins = f"{_percent(row['win_rate'])}  ({_percent(row['win_rate_low'])} to {_percent(row['win_rate_high'])})"
        numbers = "".join(f"{'–' if row[key] is None else f'{row[key]:.2f}':>8}" for key in ("gold", "score", "kl"))
        lines.append(f"{name:8}{wins:>29}{numbers}{row['length']:>8.1f}{_percent(row['ended']):>8}")
    return lines


class _Answers:
    """Every policy's answers, a row per prompt; each finished step is on disk: an interruption loses one step."""

    def __init__(self, job: Job, names: Sequence[str]) -> None:
        from rlhf_pipeline.records import read_jsonl

        self.names = tuple(names)
        self._folder = job.folder / "checkpoints"  # the runner removes it when the stage is complete
        self._folder.mkdir(exist_ok=True)
        self._rows: dict[str, Rows] = {}
        for name in names:
            path = self._path(name)
            self._rows[name] = read_jsonl(path) if path.is_file() else []
        kept = [name for name in names if self._rows[name]]
        if kept:
            job.say(f"kept from the interrupted try: the responses of {', '.join(kept)}")

    def __getitem__(self, name: str) -> Rows:
        return self._rows[name]

    def fill(self, name: str, key: str, compute: Callable[[str], Rows]) -> bool:
        """Merge the columns that ``compute`` gives into the rows, unless ``key`` is there; whether it computed."""
        from rlhf_pipeline.records import write_jsonl

        rows = self._rows[name]
        if rows and key in rows[0]:
            return False
        new = compute(name)
        self._rows[name] = [{**a, **b} for a, b in zip(rows, new, strict=True)] if rows else new
        write_jsonl(self._path(name), self._rows[name])
        return True

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"


def _policies(job: Job) -> list[str]:
    """Names in the order of the chain; SFT is always there, as what the others are compared with."""
    there = [BASE, *(name for name, artifact in job.inputs.items() if artifact.manifest.kind == "policy")]
    wanted: list[str] = there if job.config.policies is None else [REFERENCE, *job.config.policies]
    absent = [name for name in wanted if name not in there]
    if absent:
        raise ConfigError(
            f"{', '.join(absent)}: this run has no such policy",
            where="evaluate.policies",
            advice=f"choose among {', '.join(there)}, or add the stage to run.stages",
        )
    return [name for name in _ORDER if name in wanted]


def _judge(job: Job) -> str | None:
    """``gold``, ``reward_model`` or null."""
    wanted = job.config.judge
    there = {"gold": has_gold_judge(job), "reward_model": "reward" in job.inputs}
    if wanted == "gold" and not there["gold"]:
        raise ConfigError(
            "the gold judge reads responses to the built-in prompts only",
            where="evaluate.judge",
            advice="evaluate.judge: reward_model, or data.prompts: {path: pocket}",
        )
    if wanted == "reward_model" and not there["reward_model"]:
        raise ConfigError(
            "this run has no reward model",
            where="evaluate.judge",
            advice="add reward to run.stages, or evaluate.judge: auto",
        )
    if wanted == "auto":
        return next((name for name, is_there in there.items() if is_there), None)
    return None if wanted == "none" else wanted


def _prompts(job: Job) -> list[Prompt]:
    """Held-out prompts in the order of their digests: a fair draw, and the same one for a prefix of any length."""
    from stages.prompts import load_prompts

    held_out = load_prompts(job).held_out
    if not held_out:
        raise DataError("no prompt is held out, so nothing can be evaluated", where="data.held_out", advice="raise it")
    if len(held_out) < job.config.prompts:
        job.say(
            f"{len(held_out)} prompts are held out, fewer than evaluate.prompts ({job.config.prompts}): all are used"
        )
    return sorted(held_out, key=lambda prompt: prompt.id)[: job.config.prompts]


def _sample(
    job: Job,
    policies: Policies,
    name: str,
    chat: ChatTokenizer,
    encoded: Sequence[Sequence[int]],
    advance: Callable[[int], None],
) -> Rows:
    from rlhf_pipeline.generation import generate

    with policies.use(name) as model:
        sampled = generate(
            model,
            encoded,
            stop_ids=chat.stop_ids,
            pad_id=chat.pad_id,
            max_new_tokens=job.config.max_new_tokens,
            temperature=job.config.temperature,
            # Each policy has random numbers of its own: with shared ones, two policies that hardly differ would say the
            # same nearly everywhere, and the few comparisons left would make a small difference look large.
            seed=len(_ORDER) * job.seed + _ORDER.index(name),
            batch_size=job.config.batch_size,
            on_batch=advance,
        )
    return [{"text": chat.decode_response(s.ids), "ids": s.ids, "ended": s.ended} for s in sampled]


def _logprobs(
    job: Job, policies: Policies, name: str, chat: ChatTokenizer, encoded: Sequence[Sequence[int]], rows: Rows
) -> Rows:
    """Log-probability of each whole response, in nats, under a policy at the temperature of sampling."""
    import torch

    from rlhf_pipeline.logprobs import micro_batches, pad_sequences, response_logprobs

    totals = [0.0] * len(rows)
    lengths = [len(prompt) + len(row["ids"]) for prompt, row in zip(encoded, rows, strict=True)]
    with policies.use(name) as model, torch.no_grad():
        for group in micro_batches(lengths, _TOKENS):
            sequences = pad_sequences(
                [encoded[i] for i in group], [rows[i]["ids"] for i in group], pad_id=chat.pad_id, device=job.device
            )
            sums = response_logprobs(model, sequences, temperature=job.config.temperature).sum(1)
            for i, total in zip(group, sums.tolist(), strict=True):
                totals[i] = total
    return [{"logprob": total} for total in totals]


def _reference_logprobs(
    job: Job, policies: Policies, name: str, chat: ChatTokenizer, encoded: Sequence[Sequence[int]], rows: Rows
) -> Rows:
    """The same responses under SFT; its own have that number already."""
    if name != REFERENCE:
        rows = _logprobs(job, policies, REFERENCE, chat, encoded, rows)
    return [{"sft_logprob": row["logprob"]} for row in rows]


def _measure(rows: Rows, reference: Rows, judge: str | None) -> dict[str, Any]:
    """One policy's entry in ``metrics.json``; null where something is not available.

    ``kl`` is in nats per response, ``length`` in tokens with the stop token. ``gold`` is the mean over the responses
    that the gold judge can read, whose share is ``read``. SFT has no win rate: it would be compared with itself.
    """
    compared = None if rows is reference or judge is None else _compare(rows, reference, judge)
    decided = compared is not None and compared.decided > 0
    gold, score, kl = (evaluation.mean(_column(rows, key)) for key in ("gold", "score", "kl"))
    length = _lengths(rows)
    return {
        "win_rate": compared.win_rate if compared else None,
        "win_rate_low": compared.interval[0] if compared and decided else None,
        "win_rate_high": compared.interval[1] if compared and decided else None,
        "wins": compared.wins if compared else None,
        "losses": compared.losses if compared else None,
        "ties": compared.ties if compared else None,
        "real": compared.is_real if compared else None,
        "gold": gold.value if gold else None,
        "gold_se": gold.error if gold else None,
        "read": sum(row["gold"] is not None for row in rows) / len(rows) if "gold" in rows[0] else None,
        "score": score.value if score else None,
        "score_se": score.error if score else None,
        "kl": kl.value if kl else None,
        "kl_se": kl.error if kl else None,
        "length": length.mean,
        "length_p95": length.p95,
        "ended": length.ended,
        "prompts": len(rows),
    }


def _column(rows: Rows, key: str) -> list[float | None]:
    """One number per response; ``kl`` is log policy - log SFT, whose mean over a policy's own samples is the KL."""
    if key == "kl":
        return [row["logprob"] - row["sft_logprob"] if "sft_logprob" in row else None for row in rows]
    return [row.get(key) for row in rows]


def _compare(rows: Rows, reference: Rows, judge: str) -> evaluation.Comparison:
    key = "gold" if judge == "gold" else "score"
    theirs = _column(reference, key)
    # The same response scored in another batch differs by rounding: it is a tie all the same.
    ours = [t if _said(a) == _said(b) else a[key] for a, b, t in zip(rows, reference, theirs, strict=True)]
    return evaluation.compare(ours, theirs)


def _said(row: Mapping[str, Any]) -> tuple[list[int], bool]:
    """The response without its stop token, and whether it had one."""
    return row["ids"][:-1] if row["ended"] else row["ids"], row["ended"]


def _lengths(rows: Rows) -> evaluation.Lengths:
    return evaluation.lengths([len(row["ids"]) for row in rows], [row["ended"] for row in rows])


def _summary(answers: _Answers, judge: str | None) -> list[str]:
    """What the numbers say, in sentences: who wins and whether it is real, then what to be wary of."""
    reference = answers[REFERENCE]
    others = [name for name in answers.names if name != REFERENCE]
    sentences: list[str | None] = []
    if judge is None:
        sentences.append("There is neither a gold judge nor a reward model to decide, so nothing is said of win rates.")
    else:
        sentences += [evaluation.verdict(n, REFERENCE, _compare(answers[n], reference, judge)) for n in others]
    if judge == "reward_model":
        sentences.append(
            "The judge is the reward model of this run, which training sought to please: "
            "these win rates say how well it did, not what people would prefer."
        )
    for name in others:
        score, gold = (
            tuple(evaluation.mean(_column(rows, key)) for rows in (answers[name], reference))
            for key in ("score", "gold")
        )
        if name != BASE:
            sentences.append(evaluation.length_warning(name, REFERENCE, _lengths(answers[name]), _lengths(reference)))
        if None not in score and None not in gold:
            sentences.append(evaluation.overoptimisation_warning(name, REFERENCE, score, gold))  # type: ignore[arg-type]
    for name in answers.names:
        unread = sum(row.get("gold", 0) is None for row in answers[name]) / len(answers[name])
        if unread > _UNREAD:
            sentences.append(
                f"The gold judge cannot read {_percent(unread)} of {name}'s responses; each loses to one it can."
            )
    return [sentence for sentence in sentences if sentence is not None]


def _response_rows(prompts: Sequence[Prompt], answers: _Answers) -> list[dict[str, Any]]:
    rows = []
    for index, prompt in enumerate(prompts):
        responses = {}
        for name in answers.names:
            row = answers[name][index]
            responses[name] = {
                "text": row["text"],
                "ended": row["ended"],
                "length": len(row["ids"]),
                "score": row.get("score"),
                "gold": row.get("gold"),
                "kl": _column([row], "kl")[0],
            }
        messages = [message.to_json() for message in prompt.messages]
        rows.append({"prompt_id": prompt.id, "prompt": messages, "responses": responses})
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
