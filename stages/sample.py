"""Sample K responses per prompt from a policy, for people to compare.

Reads the SFT policy (or any other artifact of kind policy) and the prompts; writes ``responses.jsonl``, one row per
prompt. Some held-out prompts are among them: what people say of those measures the reward model and trains nothing.
Interrupted, it keeps the chunks that were written and samples the rest: the result is the same.

    rlhf run CONFIG sample
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rlhf_pipeline.artifacts import MANIFEST
from rlhf_pipeline.config import Section
from rlhf_pipeline.errors import ConfigError
from stages.job import Job
from stages.policies import base_below

if TYPE_CHECKING:
    from rlhf_pipeline.records import Prompt, ResponseSet

_CHUNK = 64  # prompts between two writes to the disk
_POLICIES = "give sft, base, or the folder of a finished policy, e.g. runs/round1/ppo"


class Config(Section):
    """How responses are sampled."""

    policy: str = "sft"
    """``sft``, ``base``, or the folder of a finished policy of another run, e.g. ``runs/round1/ppo``."""
    prompts: int | None = Field(None, ge=1)
    """How many training prompts; null takes all."""
    held_out_prompts: int = Field(100, ge=0)
    """How many held-out prompts beside them, for the reward model's accuracy on prompts that it never saw."""
    responses: int = Field(4, ge=2, le=16)
    """Responses per prompt; more give more pairs and a better choice among them."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens after which a response is cut off."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits; above 1 gives more variety."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample only from the smallest set of tokens that has this probability."""
    batch_size: int = Field(64, ge=1)
    """Responses generated at once; raising it is faster, takes more memory and changes rounding, by which a response
    may become another."""

    def policy_manifest(self) -> Path | None:
        """The manifest of a policy of another run, which tells whether it was made anew."""
        return None if self.policy in ("sft", "base") else Path(self.policy) / MANIFEST


def run(job: Job) -> dict[str, Any]:
    """Sample, chunk by chunk."""
    from rlhf_pipeline.generation import generate
    from rlhf_pipeline.records import ResponseSet, SampledResponse, read_jsonl
    from rlhf_pipeline.tokenization import load_tokenizer

    config: Config = job.config
    chat = load_tokenizer(job.settings.model)
    prompts = _prompts(job)
    path = job.folder / "responses.jsonl"
    done = _written_before(path)
    if done:
        job.say(f"{done} of {len(prompts)} prompts were sampled before the interruption")
    model = load_policy(job, config.policy)
    with job.track("sampling", len(prompts)) as advance, path.open("a", encoding="utf-8") as out:
        advance(done)
        for start in range(done, len(prompts), _CHUNK):
            chunk = prompts[start : start + _CHUNK]
            encoded = [chat.encode_prompt(p.messages) for p in chunk for _ in range(config.responses)]
            sampled = generate(
                model,
                encoded,
                stop_ids=chat.stop_ids,
                pad_id=chat.pad_id,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                seed=job.seed + start,  # by place, so that a resumed run draws the same
                batch_size=config.batch_size,
            )
            responses = [SampledResponse(chat.decode_response(s.ids), tuple(s.ids), s.ended) for s in sampled]
            for index, prompt in enumerate(chunk):
                row = ResponseSet(prompt, tuple(responses[index * config.responses : (index + 1) * config.responses]))
                out.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
            advance(len(chunk))
    return _statistics([ResponseSet.from_json(row) for row in read_jsonl(path)])


def _prompts(job: Job) -> list[Prompt]:
    from stages.prompts import load_prompts

    both = load_prompts(job)
    train = both.train[: job.config.prompts]
    held_out = both.held_out[: job.config.held_out_prompts]
    job.say(f"{len(train):,} training prompts and {len(held_out):,} held-out ones")
    return [*train, *held_out]


def load_policy(job: Job, policy: str) -> Any:
    """The model of ``base``, of this run's ``sft``, or of another run's policy, made with the same base."""
    from rlhf_pipeline import artifacts, models

    if policy == "base":
        return models.load_causal_lm(job.settings.model, device=job.device)
    if policy == "sft":
        return models.load_policy(job.settings.model, job.inputs["sft"].folder, device=job.device)
    if not (Path(policy) / MANIFEST).is_file():
        raise ConfigError(f"{policy} is no finished policy", where="sample.policy", advice=_POLICIES)
    artifact = artifacts.open_artifact(Path(policy))
    if artifact.manifest.kind != "policy":
        what = f"{policy} holds {artifact.manifest.kind}, not a policy"
        raise ConfigError(what, where="sample.policy", advice=_POLICIES)
    sft = job.inputs["sft"]
    artifacts.require_same_identity(artifact, sft.manifest.base, sft.manifest.tokenizer)
    base = base_below(artifact, sft)
    return models.load_policy(job.settings.model, artifact.folder, device=job.device, base=base)


def _written_before(path: Path) -> int:
    """Whole rows left by an interrupted try; a torn last one is cut off."""
    if not path.exists():
        return 0
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    whole = whole[: len(whole) // _CHUNK * _CHUNK]
    path.write_bytes(b"".join(whole))
    return len(whole)


def _statistics(rows: list[ResponseSet]) -> dict[str, Any]:
    responses = [r for row in rows for r in row.responses]
    return {
        "prompts": len(rows),
        "responses": len(responses),
        "distinct": sum(len({r.text for r in row.responses}) for row in rows) / max(len(responses), 1),
        "ended": sum(r.ended for r in responses) / max(len(responses), 1),
        "length": sum(len(r.ids) for r in responses) / max(len(responses), 1),
    }
