"""How one reward model is trained: on which base, from what, its head first if wished, and the rest by TRL."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_pipeline.artifacts import write_atomically
from stages import reward_check
from stages.job import Job

if TYPE_CHECKING:
    from rlhf_pipeline.config import ModelConfig
    from rlhf_pipeline.encoding import Text
    from rlhf_pipeline.training import Plan
    from stages.reward import Config


@dataclass(frozen=True)
class Base:
    """On what the reward model works: the run's base, or a model of its own, which reads text by itself."""

    model: ModelConfig
    text: Text
    limit: int
    own: bool


def base_of(job: Job) -> Base:
    """The base with its tokenizer and the longest row that it takes, in tokens."""
    from rlhf_pipeline import training
    from rlhf_pipeline.encoder_text import EncoderText
    from rlhf_pipeline.model_source import load_config
    from rlhf_pipeline.reward_models import load_text

    config: Config = job.config
    model, own = config.model or job.settings.model, config.model is not None
    limit = training.context_limit(config, load_config(model, encoders=own), job.say)
    text = load_text(model, limit)
    return Base(model, text, text.limit if isinstance(text, EncoderText) else limit, own)


def learn(job: Job, base: Base, judged: reward_check.Judged, folder: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    """Train one reward model, or go on with it from its last checkpoint.

    Args:
        judged: what it learns from.
        folder: gets ``metrics.jsonl`` and ``checkpoints/``.
        seed: of its head, the order of the pairs, and everything else.
    """
    import torch

    from rlhf_pipeline import training
    from rlhf_pipeline.linear_probe import fit_head

    config: Config = job.config
    rows = _comparisons(job, judged)
    lengths = [len(pair) for pair in judged.pairs]
    if rows is not None:
        lengths = [max(map(len, row["responses"])) for row in rows]
    torch.manual_seed(seed)
    classifier = start(job, base)
    steps = training.plan(config, lengths, seed=seed, window=window(classifier))
    if config.ensemble.members > 1:
        _draw_head(classifier)
    if config.head_first and not (folder / "checkpoints").is_dir():
        sides = reward_check.columns(judged.pairs).values()
        loss = fit_head(
            classifier, *sides, steps=config.head_first, batch_size=2 * steps.micro_batch, centering=config.centering
        )
        job.say(f"the head first, on frozen features: loss {loss:.4f} (0.6931 is guessing)")
    folder.mkdir(parents=True, exist_ok=True)
    trainer = _trainer(job, base, classifier, steps, judged, rows, folder, seed)
    job.say(training.describe(classifier, steps))
    with job.track("reward model", steps.steps) as advance:
        trained = training.train(trainer, folder=folder, say=job.say, advance=advance)
    if rows is not None and (tie := trainer.take_tie()) is not None:
        job.say(f"the tie parameter was learnt: {tie:.3g}")
        trained["tie"] = tie
    training.finish(classifier, base.model, job.device)
    return classifier, trained


def window(classifier: Any) -> int:
    """Batches among which pairs are sorted by length: 1 where batches are divided by length, as these have little
    padding anyway, and random ones teach more in as many steps."""
    from rlhf_pipeline import training
    from rlhf_pipeline.length_groups import pass_cost

    return training.WINDOW if pass_cost(classifier) is None else 1


def _comparisons(job: Job, judged: reward_check.Judged) -> list[dict[str, Any]] | None:
    """Rows with everything that people said; None where every pair only has a winner, and counts as much as the next:
    TRL has that loss itself."""
    wanted = job.config.loss
    plain = wanted.kind == "bradley_terry" and wanted.labels == "hard" and not wanted.margins
    if plain and all(record.weight == 1 for record in judged.records):
        return None
    from rlhf_pipeline.comparison_trainer import comparison_rows

    if wanted.margins and all(record.margin is None for record in judged.records):
        job.say("reward.loss.margins: no preference has a margin, as nobody was asked for one (collect.form.strength)")
    return comparison_rows(judged.pairs, judged.records, soft=wanted.labels == "soft", margins=wanted.margins)


def _trainer(
    job: Job,
    base: Base,
    classifier: Any,
    steps: Plan,
    judged: reward_check.Judged,
    rows: list[dict[str, Any]] | None,
    folder: Path,
    seed: int,
) -> Any:
    """TRL's trainer, with its own loss or with one of ours."""
    from rlhf_pipeline import training

    config: Config = job.config
    arguments = trainer_arguments(job, base, steps, folder, seed)
    given: dict[str, Any] = {"processing_class": training.processing_class(base.text)}
    with training.quiet():
        if rows is None:
            given["train_dataset"] = training.dataset(reward_check.columns(judged.pairs), steps.order)
            return training.RewardModelTrainer(model=classifier, args=arguments, **given)
        from rlhf_pipeline.comparison_trainer import ComparisonLoss, ComparisonTrainer, tie_parameter

        count = sum(len(row["tie"]) for row in rows)
        share = sum(sum(row["tie"]) for row in rows) / count
        wanted, learn_tie = config.loss.tie, config.loss.tie == "learnt" and config.loss.kind != "bradley_terry"
        tie = wanted if isinstance(wanted, float) else tie_parameter(config.loss.kind, share)
        mean_weight = sum(sum(row["weight"]) for row in rows) / len(rows)
        job.say(
            f"{count:,} comparisons in {len(rows):,} rows, {share:.1%} ties; loss {config.loss.kind}"
            + (f", tie parameter {tie:.3g}" if tie and config.loss.kind != "bradley_terry" else "")
            + (", learnt from there" if tie and learn_tie else "")
        )
        given["comparison_loss"] = ComparisonLoss(config.loss.kind, tie, config.centering, mean_weight)
        given["train_dataset"] = training.dataset({name: [row[name] for row in rows] for name in rows[0]}, steps.order)
        return ComparisonTrainer(classifier, args=arguments, learn_tie=learn_tie, **given)


def trainer_arguments(job: Job, base: Base, steps: Plan, folder: Path, seed: int) -> Any:
    """TRL's arguments, with checkpoints in ``folder/checkpoints``."""
    from trl.trainer.reward_config import RewardConfig

    from rlhf_pipeline import training

    config: Config = job.config
    return training.arguments(
        RewardConfig,
        config,
        steps,
        model=base.model,
        folder=folder / "checkpoints",
        seed=seed,
        device=job.device,
        tracking=job.settings.run.tracking,
        max_length=None,
        center_rewards_coefficient=config.centering or None,
    )


def start(job: Job, base: Base, labels: int = 1) -> Any:
    """The classifier to train: on the SFT policy's weights, on the base's, or on those of a model of its own.

    Args:
        labels: outputs of its head.
    """
    from rlhf_pipeline import models, training

    config: Config = job.config
    dtype = training.weight_dtype(base.model, job.device, full=config.lora is None)
    if base.own:
        job.say(f"starts from {base.model.name}, with a new head")
        own = models.load_classifier(base.model, device=job.device, dtype=dtype, labels=labels)
        return own if config.lora is None else models.add_adapter(own, config.lora, task="SEQ_CLS")
    sft = job.inputs["sft"].folder
    full = models.full_model(sft)
    classifier = models.load_classifier(base.model, device=job.device, folder=full, dtype=dtype, labels=labels)
    if full is None and config.init == "sft":
        adapted = models.classifier_from_policy(classifier, sft / "adapter")
        if config.lora is None:
            job.say("starts from the SFT adapter, merged; all weights are trained")
            return adapted.merge_and_unload().requires_grad_(True)
        job.say(f"starts from a copy of the SFT adapter (rank {models.adapter_rank(adapted)}, as there)")
        return adapted
    job.say("starts from the fully fine-tuned SFT model" if full else "starts from the base, without what SFT learnt")
    return classifier if config.lora is None else models.add_adapter(classifier, config.lora, task="SEQ_CLS")


def _draw_head(classifier: Any) -> None:
    """An ensemble's members start from different heads: N(0, 1/(d + 1)) (Stiennon et al. 2020, arXiv:2009.01325)."""
    import torch

    from rlhf_pipeline.models import score_layer

    layer = score_layer(classifier)
    torch.nn.init.normal_(layer.weight, std=(layer.in_features + 1) ** -0.5)


def learn_members(job: Job, base: Base, judged: reward_check.Judged) -> list[dict[str, Any]]:
    """Train the members of an ensemble one after the other, each into a folder of its own.

    A member that is finished is kept when the stage was interrupted.
    """
    from rlhf_pipeline import processes, training

    config: Config = job.config
    results = []
    for number in range(config.ensemble.members):
        folder = member_folder(job, number)
        done = folder / "trained.json"
        if not done.is_file():
            job.say(f"member {number + 1} of {config.ensemble.members}")
            seed = random.Random(f"{job.seed}:member:{number}").getrandbits(31)
            drawn = _bootstrap(judged, seed) if config.ensemble.bootstrap else judged
            classifier, trained = learn(job, base, drawn, folder, seed)
            training.save(classifier, folder, base.model)
            with processes.first_alone():
                if job.first:
                    write_atomically(done, json.dumps(trained) + "\n")
                    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        results.append(json.loads(done.read_text(encoding="utf-8")))
    if job.first:
        shutil.copyfile(member_folder(job, 0) / "metrics.jsonl", job.folder / "metrics.jsonl")
    return results


def member_folder(job: Job, number: int) -> Path:
    """Where a member's adapter lies."""
    return job.folder / "members" / str(number)


def _bootstrap(judged: reward_check.Judged, seed: int) -> reward_check.Judged:
    """As many dialogues as there are, drawn with replacement, each with all of its pairs."""
    from rlhf_pipeline.data import dialogue_key

    places: dict[str, list[int]] = {}
    for place, record in enumerate(judged.records):
        places.setdefault(dialogue_key(record.prompt), []).append(place)
    drawn = random.Random(seed).choices(list(places), k=len(places))
    return judged.part([place for key in drawn for place in places[key]])


def learning_curve(
    job: Job, base: Base, judged: reward_check.Judged, held_out: reward_check.Judged, final: float
) -> dict[str, Any]:
    """Models that learn from parts of the training dialogues, and what more judgements would buy.

    Args:
        judged: of which a part has all pairs of its dialogues, and a larger part contains the smaller.
        final: accuracy of the model that learnt from all.
    """
    from rlhf_pipeline import processes
    from rlhf_pipeline.data import dialogue_key
    from rlhf_pipeline.learning_curves import Point, fit
    from rlhf_pipeline.reward_evaluation import accuracy
    from rlhf_pipeline.reward_models import RewardModel

    keys = [dialogue_key(record.prompt) for record in judged.records]
    prompts = random.Random(job.seed).sample(list(dict.fromkeys(keys)), len(set(keys)))
    points = []
    for share in sorted(share for share in set(job.config.evaluation.learning_curve) if share < 1):
        kept = set(prompts[: max(1, round(share * len(prompts)))])
        part = judged.part([place for place, key in enumerate(keys) if key in kept])
        folder = job.folder / "checkpoints" / f"part-{share:g}"
        done = folder / "accuracy.json"
        if not done.is_file():
            job.say(f"a model of {len(part.pairs):,} pairs, for the learning curve")
            classifier, _ = learn(job, base, part, folder, job.seed)
            model = RewardModel(classifier)
            scored = reward_check.score_pairs(model, base.text, held_out, batch_size=job.config.batch_size)
            with processes.first_alone():
                if job.first:
                    write_atomically(done, json.dumps(accuracy(scored).value))
        points.append(Point(len(part.pairs), json.loads(done.read_text(encoding="utf-8")), len(held_out.pairs)))
    points.append(Point(len(judged.pairs), final, len(held_out.pairs)))
    curve = fit(points, seed=job.seed)
    rows = [{"pairs": point.pairs, "accuracy": point.accuracy} for point in points]
    if curve is not None:
        ahead = curve.forecasts[1]
        job.say(
            f"twice as many judgements are forecast to give {ahead.accuracy:.1%} "
            f"(95 %: {ahead.low:.1%} to {ahead.high:.1%}) instead of {final:.1%}"
        )
    return {"points": rows, **(curve.to_json() if curve else {"forecast": []})}
