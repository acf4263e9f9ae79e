"""The losses: numbers worked by hand, invariances, published vectors, exact gradients, and TRL's DPO."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rlhf_pipeline.logprobs import pad_sequences, response_logprobs
from rlhf_pipeline.losses import (
    bradley_terry_loss,
    dpo_loss,
    explained_variance,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_sum,
    ppo_policy_loss,
    ppo_value_loss,
)
from rlhf_pipeline.roles import Roles
from tests.rlhf_pipeline.test_generation import tiny


def policy(ratios, advantages, mask=None, *, count=None, **changes):
    log_ratio = torch.tensor([ratios], dtype=torch.float64).log()
    old = torch.full_like(log_ratio, -1.5)
    mask = torch.ones_like(log_ratio) if mask is None else torch.tensor([mask])
    count = int(mask.sum()) if count is None else count
    arguments = {"cliprange": 0.2, "token_count": count} | changes
    return ppo_policy_loss(old + log_ratio, old, torch.tensor([advantages], dtype=torch.float64), mask, **arguments)


def test_masked_mean_published() -> None:
    """Vectors of TRL's TestCore and OpenRLHF's test_loss_aggregation."""
    assert masked_mean(torch.tensor([1.0, 2, 3, 4]), torch.tensor([0, 1, 1, 0])).item() == 2.5
    loss = torch.tensor([[1.0, 2, 0], [3, 4, 5], [7, 0, 0]])
    assert masked_mean(loss, loss != 0).item() == pytest.approx(22 / 6)
    assert masked_mean(torch.tensor([math.nan, 1.0]), torch.tensor([0, 1])).item() == 1  # garbage under the mask
    assert masked_mean(torch.ones(2), torch.zeros(2)).item() == 0
    assert masked_sum(loss, loss > 2).item() == 19


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.4),  # clipped at 1.2
        (0.5, 2.0, -1.0),  # the pessimistic side is not clipped
        (0.5, -2.0, 1.6),  # clipped at 0.8
        (1.5, -2.0, 3.0),
        (5.0, -2.0, 6.0),  # dual clip at 3 |A|
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float) -> None:
    assert policy([ratio], [advantage]).loss.item() == pytest.approx(loss)


def test_policy_loss_statistics() -> None:
    result = policy([1.5, 0.5, 1.0, 9.0], [1.0, 1.0, 1.0, 1.0], [1, 1, 1, 0])
    assert result.loss.item() == pytest.approx(-(1.2 + 0.5 + 1.0) / 3)
    assert result.clipped.item() == 1
    k3 = (1.5 - 1 - math.log(1.5)) + (0.5 - 1 - math.log(0.5))
    assert result.old_kl.item() == pytest.approx(k3)
    assert result.largest_ratio_error.item() == pytest.approx(0.5)
    assert policy([5.0], [-2.0], dual_clip=None).loss.item() == pytest.approx(10)


def test_extreme_ratios_stay_finite() -> None:
    new = torch.tensor([[0.0, -300.0]], requires_grad=True)
    loss = ppo_policy_loss(
        new, torch.tensor([[-300.0, 0.0]]), torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2), cliprange=0.2, token_count=2,
        dual_clip=None,
    ).loss  # fmt: skip
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(new.grad).all()
    assert loss.item() == pytest.approx(math.exp(20) / 2)


def test_micro_batches_add_up_to_the_whole_and_means_of_means_do_not() -> None:
    torch.manual_seed(0)
    old, advantages = torch.randn(6, 9, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[9], [2], [5], [1], [7], [3]])
    shift = (0.3 * torch.randn(6, 9, dtype=torch.float64)).requires_grad_()

    def gradient(parts: list[slice], global_count: bool) -> torch.Tensor:
        total = sum(
            ppo_policy_loss(
                (old + shift)[p], old[p], advantages[p], mask[p], cliprange=0.2,
                token_count=mask.sum() if global_count else mask[p].sum() * len(parts),
            ).loss
            + ppo_value_loss(
                shift[p], old[p] * 0, advantages[p], mask[p], cliprange_value=0.2,
                token_count=mask.sum() if global_count else mask[p].sum() * len(parts),
            ).loss
            for p in parts
        )  # fmt: skip
        return torch.autograd.grad(total, shift)[0]

    split = [slice(0, 1), slice(1, 4), slice(4, 6)]
    whole = gradient([slice(None)], True)
    assert torch.allclose(gradient(split, True), whole, rtol=1e-12, atol=1e-15)
    assert (gradient(split, False) - whole).norm() > 0.05 * whole.norm()


def test_value_loss_by_hand() -> None:
    def one(value: float, old: float, target: float) -> tuple[float, float]:
        row = [torch.tensor([[x]]) for x in (value, old, target)]
        result = ppo_value_loss(*row, torch.ones(1, 1), cliprange_value=0.2, token_count=1)
        return result.loss.item(), result.clipped.item()

    assert one(1.0, 1.0, 3.0) == (pytest.approx(2.0), 0)
    assert one(1.5, 1.0, 3.0) == (pytest.approx(0.5 * 1.8**2), 1)  # moved too far towards the target
    assert one(0.5, 1.0, 3.0) == (pytest.approx(0.5 * 2.5**2), 0)  # moved away: not forgiven


def test_bradley_terry() -> None:
    scores, others = torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.0])
    expected = [math.log(1 + math.exp(-1.5)), math.log(2)]
    assert bradley_terry_loss(scores, others).tolist() == pytest.approx(expected)
    assert torch.allclose(bradley_terry_loss(scores + 5, others + 5), bradley_terry_loss(scores, others))
    centred = bradley_terry_loss(scores, others, centering=0.1) - bradley_terry_loss(scores, others)
    assert centred.tolist() == pytest.approx([0.1 * 2.5**2, 0])


def test_a_margin_asks_for_a_lead() -> None:
    """Who leads by exactly the margin is as if even; asking for more costs more, asking for less costs less."""
    scores, others = torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.0])
    asked = bradley_terry_loss(scores, others, margin=torch.tensor([1.5, 1.0]))
    assert asked.tolist() == pytest.approx([math.log(2), math.log(1 + math.e)])
    without, less = bradley_terry_loss(scores, others), bradley_terry_loss(scores, others, margin=-1.0)
    assert (asked > without).all()
    assert (less < without).all()


def test_bradley_terry_finds_the_maximum_likelihood_scores() -> None:
    """12 items: the minimum of the loss against Newton's method on the counts, and the truth within its χ²."""
    torch.manual_seed(1)
    items, comparisons = 12, 20_000
    truth = torch.randn(items, dtype=torch.float64)
    a = torch.randint(items, (comparisons,))
    b = (a + torch.randint(1, items, (comparisons,))) % items
    won = torch.rand(comparisons, dtype=torch.float64) < torch.sigmoid(truth[a] - truth[b])
    chosen, rejected = torch.where(won, a, b), torch.where(won, b, a)
    w = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    fit = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=0, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        fit.zero_grad()
        loss = bradley_terry_loss(w[chosen], w[rejected]).mean()
        loss.backward()
        return loss

    fit.step(closure)
    wins = torch.zeros(items, items, dtype=torch.float64).index_put((chosen, rejected), torch.ones(1).double(), True)
    mm = torch.ones(items, dtype=torch.float64)
    for _ in range(500):  # the MM iteration of Hunter (2004), which knows nothing of our loss
        mm = wins.sum(1) / ((wins + wins.T) / (mm[:, None] + mm[None])).sum(1)
        mm = mm / mm.log().mean().exp()
    found = w.detach() - w.detach().mean()
    assert (found - mm.log()).abs().max() < 1e-5
    p = torch.sigmoid(found[a] - found[b])
    design = torch.zeros(comparisons, items, dtype=torch.float64)
    design[torch.arange(comparisons), a] = 1.0
    design[torch.arange(comparisons), b] = -1.0
    information = (design * (p * (1 - p))[:, None]).T @ design
    error = found - (truth - truth.mean())
    assert error @ information @ error < 31.3  # χ², 11 degrees of freedom, p = 0.001


def test_dpo_by_hand() -> None:
    loss = dpo_loss(*(torch.tensor([x]) for x in (-10.0, -12.0, -11.0, -9.0)), beta=0.1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.4)), rel=1e-6)  # (1) - (-3) = 4
    same = torch.tensor([-3.0, -50.0])
    assert dpo_loss(same, same, same, same, beta=0.5).tolist() == pytest.approx([math.log(2)] * 2)


def test_dpo_optimum_is_the_kl_regularised_policy() -> None:
    """All pairs, weighted by how often they are drawn and preferred: the minimum is π_ref exp(r/β)/Z."""
    torch.manual_seed(0)
    n, beta = 8, 0.5
    reward, ref = torch.randn(n, dtype=torch.float64), torch.log_softmax(torch.randn(n, dtype=torch.float64), 0)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    i, j = i.flatten(), j.flatten()
    weight = (ref[i] + ref[j]).exp() * torch.sigmoid(reward[i] - reward[j])
    logits = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    options = {"max_iter": 500, "tolerance_grad": 0, "tolerance_change": 1e-16, "line_search_fn": "strong_wolfe"}
    fit = torch.optim.LBFGS([logits], **options)

    def closure() -> torch.Tensor:
        fit.zero_grad()
        lp = torch.log_softmax(logits, 0)
        loss = (weight * dpo_loss(lp[i], lp[j], ref[i], ref[j], beta=beta)).sum()
        loss.backward()
        return loss

    fit.step(closure)
    optimum = torch.softmax(ref + reward / beta, 0)
    assert 0.5 * (torch.softmax(logits, 0) - optimum).abs().sum() < 1e-5


def test_kl_estimators_are_unbiased_and_k3_is_never_negative() -> None:
    torch.manual_seed(0)
    p, q = (torch.log_softmax(torch.randn(7, dtype=torch.float64), 0) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    assert torch.allclose((p.exp() * kl_k1(p, q)).sum(), exact)
    assert torch.allclose((p.exp() * kl_k3(p, q)).sum(), exact)
    assert (kl_k3(p, q) >= 0).all()
    assert (kl_k1(p, q) < 0).any()
    assert kl_k3(torch.tensor(-1.0), torch.tensor(-1.0 + math.log(2))).item() == pytest.approx(1 - math.log(2))
    assert math.isfinite(kl_k3(torch.tensor(-200.0), torch.tensor(0.0)).item())


def test_explained_variance() -> None:
    targets, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1, 1, 0]])
    assert explained_variance(targets, targets, mask) == 1
    assert explained_variance(torch.full_like(targets, 7.0), targets, mask) == 0
    assert explained_variance(torch.tensor([[1.0, 2.0, 0.0]]), targets, mask) == pytest.approx(0.75)
    assert math.isnan(explained_variance(targets, torch.ones(1, 3), mask))


@pytest.mark.slow
def test_dpo_equals_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same adapter, the same pairs: our log-probabilities and loss against TRL's trainer, value and gradient."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    prompts, chosen, rejected = [[5, 6, 7], [8, 9]], [[3, 2], [20, 21, 22, 2]], [[30, 31, 32, 33, 2], [2]]
    peft = get_peft_model(tiny("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    peft.save_pretrained(tmp_path / "start")
    words = {f"w{i}": i for i in range(40)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), pad_token="w0", eos_token="w2", unk_token="w1"
    )
    monkeypatch.setattr(DPOTrainer, "_prepare_dataset", lambda _, dataset, *__, **___: dataset)  # ids, not texts
    trainer = DPOTrainer(
        model=peft,
        args=DPOConfig(
            output_dir=str(tmp_path / "out"), beta=0.3, use_cpu=True, bf16=False, report_to="none",
            gradient_checkpointing=False, max_length=None,
        ),
        train_dataset=Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected}),
        processing_class=tokenizer,
    )  # fmt: skip
    with torch.no_grad():  # away from the reference, which TRL has copied
        for name, parameter in peft.named_parameters():
            if ".default." in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    state = {k: p.detach().clone() for k, p in peft.named_parameters() if ".default." in k}
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True))
            for row in zip(prompts, chosen, rejected, strict=True)]  # fmt: skip
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    theirs.backward()

    roles = Roles(tiny("llama"))
    roles.add("reference", folder=tmp_path / "start")
    roles.add("policy", copy_of="reference", trainable=True)
    with torch.no_grad():
        for key, parameter in roles.named_parameters("policy").items():
            parameter.copy_(state["base_model.model." + key.replace(".weight", ".default.weight")])
    batches = [pad_sequences(prompts, responses, pad_id=0) for responses in (chosen, rejected)]
    with torch.no_grad(), roles.use("reference") as model:
        reference = [response_logprobs(model, batch).sum(1) for batch in batches]
    with roles.use("policy") as model:
        policy = [response_logprobs(model, batch).sum(1) for batch in batches]
    ours = dpo_loss(*policy, *reference, beta=0.3).mean()
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert abs(ours.item() - math.log(2)) > 1e-3
    for key, parameter in roles.named_parameters("policy").items():
        expected = dict(peft.named_parameters())["base_model.model." + key.replace(".weight", ".default.weight")].grad
        assert (parameter.grad - expected).norm() < 1e-4 * expected.norm()
