"""The losses of preferences: numbers worked by hand, probabilities that sum to one, gradients, known scores recovered,
and TRL's DPO."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from rlhf_pipeline.logprobs import pad_sequences, response_logprobs
from rlhf_pipeline.preference_losses import (
    bradley_terry_loss,
    centering_penalty,
    davidson_loss,
    dpo_loss,
    plackett_luce_loss,
    rao_kupper_loss,
)
from rlhf_pipeline.roles import Roles
from tests.rlhf_pipeline.test_generation import tiny

ITEMS, COMPARISONS = 12, 20_000
CHI2 = {11: 31.26, 12: 32.91}
"""χ² at p = 0.001 by degrees of freedom."""


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_bradley_terry_by_hand() -> None:
    scores, others = torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.0])
    expected = [math.log(1 + math.exp(-1.5)), math.log(2)]
    assert bradley_terry_loss(scores, others).tolist() == pytest.approx(expected)
    assert torch.allclose(bradley_terry_loss(scores + 5, others + 5), bradley_terry_loss(scores, others))
    assert centering_penalty(scores, others).tolist() == [2.5**2, 0]


def test_a_margin_asks_for_a_lead() -> None:
    """Who leads by exactly the margin is as if even; asking for more costs more, asking for less costs less."""
    scores, others = torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.0])
    asked = bradley_terry_loss(scores, others, margin=torch.tensor([1.5, 1.0]))
    assert asked.tolist() == pytest.approx([math.log(2), math.log(1 + math.e)])
    without, less = bradley_terry_loss(scores, others), bradley_terry_loss(scores, others, margin=-1.0)
    assert (asked > without).all()
    assert (less < without).all()


def test_a_soft_label_is_a_share_of_each_side() -> None:
    [loss] = bradley_terry_loss(doubles(1.5), doubles(0.0), probability=doubles(0.8)).tolist()
    assert loss == pytest.approx(0.8 * math.log(1 + math.exp(-1.5)) + 0.2 * math.log(1 + math.exp(1.5)))
    lead = (0.7 + torch.logit(doubles(0.8))).requires_grad_()
    bradley_terry_loss(lead, doubles(0.0), probability=0.8, margin=0.7).sum().backward()
    assert lead.grad is not None
    assert abs(lead.grad.item()) < 1e-12  # the minimum


def test_rao_and_kupper_by_hand() -> None:
    """Strengths 3 and 1, θ = 2: wins 3 / (3 + 2), loses 1 / (1 + 6), ties 3 * 3 / (5 * 7)."""
    sides, eta = (doubles(math.log(3)), doubles(0.0)), math.log(2)
    assert rao_kupper_loss(*sides, threshold=eta).exp().item() == pytest.approx(5 / 3)
    assert rao_kupper_loss(*sides[::-1], threshold=eta).exp().item() == pytest.approx(7)
    assert rao_kupper_loss(*sides, threshold=eta, probability=0.5, tie=1.0).exp().item() == pytest.approx(35 / 9)
    even = rao_kupper_loss(doubles(0.3), doubles(0.3), threshold=eta, probability=0.5, tie=1.0)
    assert even.exp().item() == pytest.approx(1 / math.tanh(eta / 2))


def test_davidson_by_hand() -> None:
    """Strengths 4 and 1, ν = 1/2: 4 to 1/2 * √4 to 1."""
    sides = doubles(math.log(4)), doubles(0.0)
    assert davidson_loss(*sides, prevalence=0.5).exp().item() == pytest.approx(6 / 4)
    assert davidson_loss(*sides[::-1], prevalence=0.5).exp().item() == pytest.approx(6)
    assert davidson_loss(*sides, prevalence=0.5, probability=0.5, tie=1.0).exp().item() == pytest.approx(6)
    even = davidson_loss(doubles(0.3), doubles(0.3), prevalence=0.5, probability=0.5, tie=1.0)
    assert even.exp().item() == pytest.approx(2.5 / 0.5)


WITH_TIES: list[tuple[Callable[..., Tensor], dict[str, float]]] = [
    (rao_kupper_loss, {"threshold": 0.4}),
    (davidson_loss, {"prevalence": 0.7}),
]


@pytest.mark.parametrize(("loss", "extra"), WITH_TIES)
def test_outcomes_of_a_pair_are_certain_together_and_mix(loss: Callable[..., Tensor], extra: dict[str, float]) -> None:
    sides = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    won, lost = loss(*sides, **extra), loss(*sides, probability=0.0, **extra)
    even = loss(*sides, probability=0.5, tie=1.0, **extra)
    assert torch.allclose((-won).exp() + (-lost).exp() + (-even).exp(), torch.ones(50, dtype=torch.float64))
    # of seven judges four chose the first, two said tie, one chose the second
    mixed = loss(*sides, probability=5 / 7, tie=2 / 7, **extra)
    assert torch.allclose(mixed, (4 * won + 2 * even + lost) / 7)


@pytest.mark.parametrize(("loss", "extra"), [*WITH_TIES, (bradley_terry_loss, {})])
def test_swapped_sides_say_the_same(loss: Callable[..., Tensor], extra: dict[str, float]) -> None:
    sides = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ties = {"tie": 0.2} if extra else {}
    one = loss(*sides, probability=0.8, margin=0.3, **ties, **extra)
    assert torch.allclose(one, loss(*sides.flip(0), probability=0.2, margin=-0.3, **ties, **extra))
    assert torch.allclose(one, loss(*(sides + 7), probability=0.8, margin=0.3, **ties, **extra))
    assert not torch.allclose(one, loss(*sides, probability=0.8, margin=-0.3, **ties, **extra))


def test_without_ties_all_are_bradley_and_terry() -> None:
    sides = torch.randn(2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = bradley_terry_loss(*sides, probability=0.9, margin=0.2)
    assert torch.allclose(rao_kupper_loss(*sides, threshold=1e-9, probability=0.9, margin=0.2), plain)
    assert torch.allclose(davidson_loss(*sides, prevalence=1e-12, probability=0.9, margin=0.2), plain)
    places, mask = torch.tensor([0, 1]).expand(20, 2), torch.ones(20, 2)
    assert torch.allclose(plackett_luce_loss(sides.T, places, mask), bradley_terry_loss(*sides))


# Rankings


def test_plackett_luce_by_hand() -> None:
    """Strengths 1, 2, 3: the last first with 3/6, then the first with 1/3, then the second for certain."""
    scores = doubles(1.0, 2.0, 3.0).log()[None]
    places, mask = torch.tensor([[1, 2, 0]]), torch.ones(1, 3)
    assert plackett_luce_loss(scores, places, mask).exp().item() == pytest.approx(6)
    assert plackett_luce_loss(scores, torch.tensor([[1, 1, 0]]), mask).item() == math.inf


def test_equals_of_a_ranking_by_hand() -> None:
    """Strengths 1, 4, 4 and ν = 1/2: the first alone has 1, {2, 3} 1/2 * √16, every {1, x} 1/2 * √4, all 1/4 * ∛16."""
    scores, mask = doubles(1.0, 4.0, 4.0).log()[None], torch.ones(1, 3)
    total = 1 + 4 + 4 + 2 + 1 + 1 + 16 ** (1 / 3) / 4
    both_first = plackett_luce_loss(scores, torch.tensor([[1, 0, 0]]), mask, prevalence=0.5)
    assert both_first.exp().item() == pytest.approx(total / 2)
    both_last = plackett_luce_loss(scores, torch.tensor([[0, 1, 1]]), mask, prevalence=0.5)
    assert both_last.exp().item() == pytest.approx(total / 1 * (4 + 4 + 2) / 2)


def test_two_of_a_ranking_are_davidsons_pair() -> None:
    scores, mask = (
        torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        torch.ones(20, 2),
    )
    for places, said in (((0, 1), (1.0, 0.0)), ((1, 0), (0.0, 0.0)), ((3, 3), (0.5, 1.0))):
        ranked = plackett_luce_loss(scores, torch.tensor(places).expand(20, 2), mask, prevalence=0.7)
        pair = davidson_loss(scores[:, 0], scores[:, 1], prevalence=0.7, probability=said[0], tie=said[1])
        assert torch.allclose(ranked, pair)


def test_rankings_of_four_are_certain_together() -> None:
    scores = doubles(0.3, -1.0, 2.0, 0.1)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    plain = plackett_luce_loss(scores.expand(24, 4), orders, torch.ones(24, 4))
    assert (-plain).exp().sum().item() == pytest.approx(1)
    weak = {tuple(sorted(set(p)).index(x) for x in p) for p in itertools.product(range(4), repeat=4)}
    assert len(weak) == 75
    places = torch.tensor(sorted(weak))
    losses = plackett_luce_loss(scores.expand(75, 4), places, torch.ones(75, 4), prevalence=doubles(0.6)[0])
    assert (-losses).exp().sum().item() == pytest.approx(1)


def test_what_a_mask_leaves_out_of_a_ranking_and_the_order_of_columns_do_not_matter() -> None:
    scores = torch.tensor([[0.3, -1.0, math.nan, 2.0], [0.5, 0.1, 0.2, -0.3]], requires_grad=True)
    places, mask = torch.tensor([[5, 2, 0, 2], [0, 1, 2, 3]]), torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])
    losses = plackett_luce_loss(scores, places, mask, prevalence=0.5)
    short = plackett_luce_loss(scores[:1, [3, 0, 1]], torch.tensor([[0, 1, 0]]), torch.ones(1, 3), prevalence=0.5)
    assert losses[0].item() == pytest.approx(short.item(), rel=1e-6)
    losses.sum().backward()
    assert scores.grad is not None
    assert scores.grad[0, 2] == 0
    assert torch.isfinite(scores.grad).all()
    assert plackett_luce_loss(scores, places, mask * 0).tolist() == [0, 0]


def test_gradients_are_those_of_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    p, tie = torch.full((6,), 0.7, dtype=torch.float64), torch.full((6,), 0.4, dtype=torch.float64)
    extra = doubles(0.6)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: bradley_terry_loss(a, b, probability=p, margin=0.3), sides)
    for loss, name in ((rao_kupper_loss, "threshold"), (davidson_loss, "prevalence")):
        assert torch.autograd.gradcheck(
            lambda a, b, e, loss=loss, name=name: loss(a, b, probability=p, tie=tie, margin=0.3, **{name: e}),
            (*sides, extra),
        )
    scores = torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    places = torch.tensor([[0, 1, 1, 2, 3], [4, 3, 2, 1, 0], [0, 0, 0, 0, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert torch.autograd.gradcheck(lambda s, e: plackett_luce_loss(s, places, mask, prevalence=e), (scores, extra))


# Known scores recovered


def recover(loss: Callable[[Tensor], Tensor], truth: Tensor) -> tuple[Tensor, float]:
    """Newton's method from zero on the summed loss, and how far it ends from the truth: ``eᵀ H e``, which is χ²."""
    found = torch.zeros_like(truth)
    for _ in range(30):
        gradient, hessian = torch.func.grad(loss)(found), torch.func.hessian(loss)(found)
        step = torch.linalg.solve(hessian, gradient)
        found = found - step * min(1.0, 1.0 / step.abs().max().item())
        if step.abs().max() < 1e-7:
            break
    assert torch.func.grad(loss)(found).abs().max() < 1e-6
    error = found - truth
    return found, float(error @ hessian @ error)


def counted(*columns: Tensor) -> tuple[Tensor, ...]:
    """Rows that are alike once, and how often each is there: the same sum in less time."""
    rows, times = torch.stack([c.double() for c in columns], 1).unique(dim=0, return_counts=True)
    return (*(rows[:, i].to(c.dtype) for i, c in enumerate(columns)), times.double())


def all_scores(free: Tensor) -> Tensor:
    """Scores with the first at zero: only differences are fixed."""
    return torch.cat([free.new_zeros(1), free[: ITEMS - 1]])


def planted(seed: int) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    """Scores, and who meets whom."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(ITEMS - 1, dtype=torch.float64, generator=generator)
    a = torch.randint(ITEMS, (COMPARISONS,), generator=generator)
    b = (a + torch.randint(1, ITEMS, (COMPARISONS,), generator=generator)) % ITEMS
    return truth, a, b, generator


@pytest.mark.parametrize("margins", [False, True])
def test_bradley_terry_finds_the_scores(margins: bool) -> None:
    """Judges who want a lead (a margin, which differs from pair to pair) are understood as such."""
    truth, a, b, generator = planted(1)
    scores = all_scores(truth)
    margin = torch.randint(4, (COMPARISONS,), generator=generator).double() * (0.5 if margins else 0.0)
    won = torch.rand(COMPARISONS, dtype=torch.float64, generator=generator) < torch.sigmoid(
        scores[a] - scores[b] - margin
    )
    chosen, rejected = torch.where(won, a, b), torch.where(won, b, a)
    chosen, rejected, asked, times = counted(chosen, rejected, torch.where(won, margin, -margin))

    def loss(w: Tensor, margin: Tensor = asked) -> Tensor:
        s = all_scores(w)
        return (times * bradley_terry_loss(s[chosen], s[rejected], margin=margin)).sum()

    found, chi2 = recover(loss, truth)
    assert chi2 < CHI2[11]
    if margins:
        assert recover(lambda w: loss(w, 0 * asked), truth)[1] > CHI2[11]
        return
    wins = torch.zeros(ITEMS, ITEMS, dtype=torch.float64).index_put((chosen, rejected), times)
    mm = torch.ones(ITEMS, dtype=torch.float64)
    for _ in range(500):  # the MM iteration of Hunter (2004), which knows nothing of our loss
        mm = wins.sum(1) / ((wins + wins.T) / (mm[:, None] + mm[None])).sum(1)
        mm = mm / mm[0]
    assert (all_scores(found) - mm.log()).abs().max() < 1e-5


def test_soft_labels_find_the_scores_exactly() -> None:
    truth, a, b, _ = planted(2)
    a, b = a[:200], b[:200]
    p = torch.sigmoid(all_scores(truth)[a] - all_scores(truth)[b])
    found, _ = recover(lambda w: bradley_terry_loss(all_scores(w)[a], all_scores(w)[b], probability=p).sum(), truth)
    assert (found - truth).abs().max() < 1e-8


@pytest.mark.parametrize(("loss", "name"), [(rao_kupper_loss, "threshold"), (davidson_loss, "prevalence")])
def test_scores_and_the_taste_for_ties_are_found(loss: Callable[..., Tensor], name: str) -> None:
    truth, a, b, generator = planted(3)
    scores, extra = all_scores(truth), 0.5
    given = {name: extra}
    win = (-loss(scores[a], scores[b], **given)).exp()
    even = (-loss(scores[a], scores[b], probability=0.5, tie=1.0, **given)).exp()
    draw = torch.rand(COMPARISONS, dtype=torch.float64, generator=generator)
    p = torch.where(draw < win, 1.0, torch.where(draw < win + even, 0.5, 0.0)).double()
    assert 0.1 < (p == 0.5).double().mean() < 0.3
    a, b, p, times = counted(a, b, p)

    def total(w: Tensor) -> Tensor:
        s, free = all_scores(w), w[-1].exp()
        return (times * loss(s[a], s[b], probability=p, tie=(p == 0.5).double(), **{name: free})).sum()

    _, chi2 = recover(total, torch.cat([truth, doubles(math.log(extra))]))
    assert chi2 < CHI2[12]


@pytest.mark.parametrize("ties", [False, True])
def test_plackett_luce_finds_the_scores(ties: bool) -> None:
    """3,000 rankings of four: groups are drawn one after another as the model says."""
    truth, _, _, generator = planted(4)
    scores, nu, rankings, size = all_scores(truth), 0.3, 3000, 4
    shown = torch.stack([torch.randperm(ITEMS, generator=generator)[:size] for _ in range(rankings)])
    groups = [g for n in range(1, (size if ties else 1) + 1) for g in itertools.combinations(range(size), n)]
    places = torch.full((rankings, size), -1)
    for place in range(size):
        open_ = places < 0
        worth = torch.stack([
            torch.where(open_[:, list(g)].all(1), nu ** (len(g) - 1) * scores[shown[:, list(g)]].mean(1).exp(), 0.0)
            for g in groups
        ], 1)  # fmt: skip
        worth[~open_.any(1)] = 1.0  # nobody is left; whatever is drawn changes nothing
        drawn = torch.multinomial(worth, 1, generator=generator).squeeze(1).tolist()
        for row, number in enumerate(drawn):
            for column in groups[number]:
                if places[row, column] < 0:
                    places[row, column] = place
    mask = torch.ones_like(places)
    free = doubles(math.log(nu)) if ties else doubles()

    def loss(w: Tensor) -> Tensor:
        prevalence = w[-1].exp() if ties else None
        return plackett_luce_loss(all_scores(w)[shown], places, mask, prevalence=prevalence).sum()

    _, chi2 = recover(loss, torch.cat([truth, free]))
    assert chi2 < CHI2[12 if ties else 11]


# DPO


def test_dpo_by_hand() -> None:
    loss = dpo_loss(*(torch.tensor([x]) for x in (-10.0, -12.0, -11.0, -9.0)), beta=0.1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.4)), rel=1e-6)  # (1) - (-3) = 4
    same = torch.tensor([-3.0, -50.0])
    assert dpo_loss(same, same, same, same, beta=0.5).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize(("pairs", "far"), [(None, 1e-5), (20_000, 0.1)])
def test_dpo_optimum_is_the_kl_regularised_policy(pairs: int | None, far: float) -> None:
    """The minimum is π_ref exp(r/β)/Z: exactly with all pairs, weighted by how often they are drawn and preferred, and
    nearly with so many that were drawn."""
    torch.manual_seed(0)
    n, beta = 8, 0.5
    reward, ref = torch.randn(n, dtype=torch.float64), torch.log_softmax(torch.randn(n, dtype=torch.float64), 0)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    i, j = i.flatten(), j.flatten()
    weight = (ref[i] + ref[j]).exp() * torch.sigmoid(reward[i] - reward[j])
    if pairs is not None:
        drawn = torch.multinomial(weight, pairs, replacement=True)
        weight = torch.bincount(drawn, minlength=n * n).double() / pairs
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
    assert 0.5 * (torch.softmax(logits, 0) - optimum).abs().sum() < far


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
