"""``reward.loss`` through the stage: one real step of each loss has the number of the pure function, and a learnt tie
parameter gets where it belongs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_pipeline import length_groups, training
from rlhf_pipeline import preference_losses as losses
from rlhf_pipeline.encoding import EncodedPair
from rlhf_pipeline.metrics import read_metrics
from rlhf_pipeline.models import score_layer
from rlhf_pipeline.records import Message, Preference, Prompt
from rlhf_pipeline.reward_models import RewardModel
from rlhf_pipeline.tokenization import load_tokenizer
from stages import reward, reward_learn
from stages.reward_check import Judged
from tests import tiny_models
from tests.stage_jobs import Interrupted, interrupt_at, job
from tests.stages import tiny_run

PROMPTS = [Prompt((Message("user", f"How do I water number {i}?"),)) for i in range(3)]
A, B, C, D = "Slowly.", "In the morning.", "Not at all.", "Go away."


def pair(prompt: int, chosen: str, rejected: str, **more: Any) -> Preference:
    return Preference(PROMPTS[prompt], chosen, rejected, **more)


PAIRS = [
    pair(0, A, B, probability=0.75, margin=2.0, meta={"votes": {"chosen": 2, "rejected": 0, "tie": 2}}),
    pair(1, C, D, probability=0.5, tie=True),
    pair(2, B, D, weight=0.5, margin=1.0),
]
RANKING = [  # A, then B and C as equals, then D
    pair(0, one, other, weight=1 / 6, meta={"task": "t"}, **({"probability": 0.5, "tie": True} if even else {}))
    for one, other, even in ((A, B, 0), (A, C, 0), (A, D, 0), (B, C, 1), (B, D, 0), (C, D, 0))
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llama")
    model = tiny_models.make("llama", folder / "base")
    tiny_run.make_adapter(model, folder / "sft", 1)
    return model, folder / "sft"


def learn(
    llama: Any, records: list[Preference], folder: Path, monkeypatch: pytest.MonkeyPatch, **config: Any
) -> tuple[Any, dict[str, Any], dict[tuple[int, str], float]]:
    """The stage's own training from a random head; the job, its numbers, and every response's score before it."""
    model, sft = llama
    chat = load_tokenizer(model)
    given = {"batch_size": 8, "warmup": 0.0, "schedule": "constant", "max_length": 120, "log_every": 1, **config}
    made = job(reward.Config(**given), model, folder, inputs={"sft": SimpleNamespace(folder=sft)})
    before: dict[tuple[int, str], float] = {}

    def start(*args: Any) -> Any:
        classifier = original(*args)
        torch.nn.init.normal_(score_layer(classifier).weight)
        shown = sorted({(PROMPTS.index(r.prompt), text) for r in records for text in (r.chosen, r.rejected)})
        rows = [chat.encode(PROMPTS[number].messages, text) for number, text in shown]
        before.update(zip(shown, RewardModel(classifier).score(rows), strict=True))
        return classifier

    original = reward_learn.start
    with monkeypatch.context() as patch:
        patch.setattr(reward_learn, "start", start)
        encoded = []
        for r in records:
            sides = (chat.encode_response(r.prompt.messages, text) for text in (r.chosen, r.rejected))
            encoded.append(EncodedPair(chat.encode_prompt(r.prompt.messages), *sides))
        _, numbers = reward_learn.learn(made, reward_learn.base_of(made), Judged(encoded, records), made.folder, 0)
    return made, numbers, before


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"kind": "bradley_terry", "labels": "soft", "margins": True},
            lambda c, r, p, t, m: losses.bradley_terry_loss(c, r, probability=p, margin=m),
        ),
        (
            {"kind": "rao_kupper", "labels": "soft", "tie": 0.7},
            lambda c, r, p, t, m: losses.rao_kupper_loss(c, r, threshold=0.7, probability=p, tie=t),
        ),
        (
            {"kind": "davidson", "labels": "soft", "margins": True, "tie": 0.7},
            lambda c, r, p, t, m: losses.davidson_loss(c, r, prevalence=0.7, probability=p, tie=t, margin=m),
        ),
    ],
    ids=["bradley_terry", "rao_kupper", "davidson"],
)
def test_a_step_of_the_stage_has_the_loss_of_the_pure_function(config, expected, llama, tmp_path, monkeypatch) -> None:
    made, _, before = learn(llama, PAIRS, tmp_path / "reward", monkeypatch, loss=config, max_steps=1, centering=0.1)
    chosen, rejected = (
        torch.tensor([before[PROMPTS.index(r.prompt), getattr(r, side)] for r in PAIRS])
        for side in ("chosen", "rejected")
    )
    probability, tie = torch.tensor([0.75, 0.5, 1.0]), torch.tensor([0.5, 1.0, 0.0])
    margin, weight = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.5])
    each = expected(chosen, rejected, probability, tie, margin) + 0.1 * losses.centering_penalty(chosen, rejected)
    [line] = read_metrics(made.folder / "metrics.jsonl")
    assert line["loss"] == pytest.approx((each * weight).sum().item() / weight.sum().item(), abs=1e-5)
    assert (chosen - rejected).abs().min() > 0.01, "scores that differ"


@pytest.mark.parametrize(("small", "window"), [(10**9, training.WINDOW), (0, 1)])
def test_batches_that_are_divided_by_length_are_random(small, window, llama, tmp_path, monkeypatch) -> None:
    windows: list[int] = []
    original = training.plan
    monkeypatch.setattr(length_groups, "_SMALL", small)
    monkeypatch.setattr(training, "plan", lambda *a, **given: windows.append(given["window"]) or original(*a, **given))
    learn(llama, PAIRS, tmp_path / "reward", monkeypatch, max_steps=1)
    assert windows == [window]


def test_a_step_on_a_whole_ranking(llama, tmp_path, monkeypatch) -> None:
    config = {"kind": "plackett_luce", "tie": 0.7}
    made, _, before = learn(llama, RANKING, tmp_path / "reward", monkeypatch, loss=config, max_steps=1, centering=0.0)
    scores = torch.tensor([[before[0, text] for text in (A, B, C, D)]])
    expected = losses.plackett_luce_loss(scores, torch.tensor([[0, 1, 1, 3]]), torch.ones(1, 4), prevalence=0.7)
    [line] = read_metrics(made.folder / "metrics.jsonl")
    assert line["loss"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        # σ(d - η) = 0.7 and σ(-d - η) = 0.1; with Davidson e^{d/2} : ν : e^{-d/2} = 0.7 : 0.2 : 0.1
        ("rao_kupper", (2.1972246 - 0.8472979) / 2),
        ("davidson", 0.2 / (0.7 * 0.1) ** 0.5),
    ],
)
def test_a_learnt_tie_parameter_is_recovered_and_resumed(kind, truth, llama, tmp_path, monkeypatch) -> None:
    """Of ten judges of every pair seven chose, two said tie and one rejected: scores and ties are known exactly."""
    votes = {"chosen": 7, "rejected": 1, "tie": 2}
    records = [pair(i, A, D, probability=0.8, meta={"votes": votes}) for i in range(3)]
    config = {"loss": {"kind": kind, "labels": "soft", "tie": "learnt"}, "centering": 0.0, "learning_rate": 1e-2}
    config |= {"epochs": 240, "schedule": "cosine", "save_every": 20, "lora": {"rank": 2}}
    made, numbers, _ = learn(llama, records, tmp_path / "whole", monkeypatch, **config)
    assert numbers["tie"] == pytest.approx(truth, rel=0.03)
    lines = read_metrics(made.folder / "metrics.jsonl")
    assert abs(lines[0]["tie"] / truth - 1) > 0.15, "it starts where the share of ties puts it"
    assert any(line.startswith("the tie parameter was learnt") for line in made.said)
    if kind == "davidson":
        return
    with monkeypatch.context() as patch:
        interrupt_at(patch, 30)
        with pytest.raises(Interrupted):
            learn(llama, records, tmp_path / "parts", patch, **config)
    _, resumed, _ = learn(llama, records, tmp_path / "parts", monkeypatch, **config)
    assert resumed["resumed_at"] == 20
    assert resumed["tie"] == numbers["tie"], "to the bit"
