"""What a trained reward model is worth, measured on pairs that it has not seen, and the proof that it was saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_pipeline.errors import DataError, TrainingError
from stages.job import Job

if TYPE_CHECKING:
    from rlhf_pipeline.encoding import EncodedPair, Text
    from rlhf_pipeline.records import Preference
    from rlhf_pipeline.reward_evaluation import ScoredPair
    from rlhf_pipeline.reward_models import Ensemble, RewardModel, Scores

EVALUATION = "evaluation.json"
_PARITY_PAIRS = 32
_SENSITIVITY_PAIRS = 200
_GROUP_KEYS = ("subset", "group", "category", "topic", "kind")


@dataclass(frozen=True)
class Judged:
    """Pairs that are measured: as ids, and as what people said of them."""

    pairs: Sequence[EncodedPair]
    records: Sequence[Preference]

    def part(self, places: Sequence[int]) -> Judged:
        """Those at these places, as often as they are named."""
        return Judged([self.pairs[i] for i in places], [self.records[i] for i in places])


def measure(job: Job, model: Scores, text: Text, held_out: Judged, *, batch_size: int) -> dict[str, Any]:
    """Everything that scores of held-out pairs say, as ``evaluation.json`` holds it."""
    from rlhf_pipeline import reward_evaluation as evaluation
    from rlhf_pipeline.metrics import require_finite

    found: dict[str, Any] = {"pairs": len(held_out.pairs)}
    if held_out.pairs:
        scored = score_pairs(model, text, held_out, batch_size=batch_size)
        total = sum(pair.chosen + pair.rejected for pair in scored)
        require_finite(total, "the sum of the scores of held-out responses")
        found |= _describe(scored, _ceiling(job, held_out.records))
        found["ensemble"] = _members(model, held_out, scored, batch_size=batch_size)
        found["sensitivity"] = _sensitivity(model, text, held_out, batch_size=batch_size)
        found["warnings"] = evaluation.warnings(found)
    found["test_sets"] = _test_sets(job, model, text, batch_size=batch_size)
    return found


def report(job: Job, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write and say what was measured; the result is what the manifest holds of it.

    Raises:
        TrainingError: a gate that the configuration names is not passed.
    """
    if job.first:
        written = json.dumps(found, indent=2, ensure_ascii=False)
        (job.folder / EVALUATION).write_text(written + "\n", encoding="utf-8")
    job.say(_sentence(found))
    if found.get("ensemble") and found["ensemble"]["error_auc"]:
        area = found["ensemble"]["error_auc"]
        job.say(
            f"the members' disagreement tells errors from the rest with an area under the curve of {area['value']:.2f} "
            f"(95 %: {area['low']:.2f} to {area['high']:.2f}; 0.5 is chance)"
        )
    for row in found["test_sets"]:
        interval = f"{row['low']:.1%} to {row['high']:.1%}, {row['pairs']:,} pairs"
        job.say(f"{row['name']}: accuracy {row['value']:.1%} ({interval})")
    warnings: list[dict[str, str]] = found.get("warnings", [])
    for warning in warnings:
        job.say(f"warning: {warning['sentence']}")
    stopping = [warning["sentence"] for warning in warnings if warning["gate"] in job.config.evaluation.stop_on]
    if stopping:
        raise TrainingError(
            stopping[0], details=stopping[1:], advice="to go on all the same, take it out of reward.evaluation.stop_on"
        )
    return _for_manifest(found)


def score_pairs(model: Scores, text: Text, judged: Judged, *, batch_size: int) -> list[ScoredPair]:
    """Both scores of each pair, with what is needed to look at them by slice."""
    from rlhf_pipeline.reward_evaluation import ScoredPair

    scores = model.score([ids for rows in columns(judged.pairs).values() for ids in rows], batch_size)
    sides = zip(scores[: len(judged.pairs)], scores[len(judged.pairs) :], strict=True)
    return [
        ScoredPair(
            *pair_scores,
            *(response_lengths(text, pair, record)),
            probability=record.probability,
            margin=record.margin,
            judgements=record.judgements,
            source=record.source,
            group=_group(record),
        )
        for pair_scores, pair, record in zip(sides, judged.pairs, judged.records, strict=True)
    ]


def columns(pairs: Sequence[EncodedPair]) -> dict[str, list[list[int]]]:
    """Whole sequences of both sides, as the trainer takes them."""
    return {
        "chosen_ids": [pair.prompt + pair.chosen for pair in pairs],
        "rejected_ids": [pair.prompt + pair.rejected for pair in pairs],
    }


def response_lengths(text: Text, pair: EncodedPair, record: Preference) -> tuple[int, int]:
    """Tokens of the two responses, without the prompt."""
    from rlhf_pipeline.encoder_text import EncoderText

    if isinstance(text, EncoderText):
        return text.response_length(record.chosen), text.response_length(record.rejected)
    return len(pair.chosen), len(pair.rejected)


def _group(record: Preference) -> str:
    """What the prompt belongs to, where the data say so; else whether it is the first turn of its dialogue."""
    imported = record.meta.get("imported")
    meta = {**record.meta, **(imported if isinstance(imported, Mapping) else {})}
    named = next((meta[key] for key in _GROUP_KEYS if isinstance(meta.get(key), str)), None)
    return named or ("first turn" if sum(m.role == "user" for m in record.prompt.messages) == 1 else "later turn")


def _describe(scored: Sequence[ScoredPair], ceiling: dict[str, Any] | None) -> dict[str, Any]:
    from rlhf_pipeline import reward_evaluation as evaluation
    from rlhf_pipeline.calibration import calibrate

    length = evaluation.length_baseline(scored)
    margins, probabilities = [pair.difference for pair in scored], [pair.probability for pair in scored]
    return {
        "accuracy": evaluation.accuracy(scored).to_json(),
        "ceiling": ceiling,
        "length_baseline": {"direction": "longer" if length.longer_wins else "shorter", **length.share.to_json()},
        "calibration": calibrate(margins, probabilities).to_json(),
        "slices": evaluation.slices(scored),
        "scores": evaluation.distribution(scored),
        "length_correlation": evaluation.length_correlation(scored),
        "margin": sum(margins) / len(margins),
    }


def _members(
    model: Scores, held_out: Judged, scored: Sequence[ScoredPair], *, batch_size: int
) -> dict[str, Any] | None:
    """Each member of an ensemble for itself, and whether their disagreement tells where the ensemble is wrong."""
    from rlhf_pipeline.ensembles import auc, uncertainty
    from rlhf_pipeline.reward_evaluation import Share
    from rlhf_pipeline.reward_models import Ensemble

    if not isinstance(model, Ensemble):
        return None
    count = len(held_out.pairs)
    scores = model.member_scores([ids for rows in columns(held_out.pairs).values() for ids in rows], batch_size)
    differences = [[a - b for a, b in zip(one[:count], one[count:], strict=True)] for one in scores]
    area = auc(uncertainty(differences), [pair.difference <= 0 for pair in scored])
    return {
        "accuracies": [Share.of(one).value for one in differences],
        "error_auc": None if area is None else dict(zip(("value", "low", "high"), area, strict=True)),
    }


def _ceiling(job: Job, records: Sequence[Preference]) -> dict[str, Any] | None:
    """From how often two people said the same of one task, as ``collect`` counted it."""
    from rlhf_pipeline.reward_evaluation import agreement_ceiling

    metrics = job.inputs["collect"].manifest.metrics
    agreement, judged_twice = metrics.get("agreement"), metrics.get("agreement_pairs", 0)
    if agreement is None:
        return None
    ceiling = agreement_ceiling(agreement, judged_twice, [record.judgements for record in records])
    return ceiling.to_json() if ceiling else None


def _sensitivity(model: Scores, text: Text, held_out: Judged, *, batch_size: int) -> list[dict[str, Any]]:
    """The same pairs written otherwise; a prefix of the held-out ones, whose order is that of the data."""
    from rlhf_pipeline.reward_evaluation import sensitivity

    records, pairs = held_out.records[:_SENSITIVITY_PAIRS], held_out.pairs[:_SENSITIVITY_PAIRS]

    def differences(rows: list[list[int]]) -> list[float]:
        scores = model.score(rows, batch_size)
        return [a - b for a, b in zip(scores[: len(records)], scores[len(records) :], strict=True)]

    before = differences([ids for rows in columns(pairs).values() for ids in rows])
    return [
        sensitivity(name, before, differences([*map(chosen, pairs, records), *map(rejected, pairs, records)]))
        for name, (chosen, rejected) in _variants(text).items()
    ]


def _variants(text: Text) -> dict[str, tuple[Any, Any]]:
    """Ways to write a pair that say the same: how each makes the ids of the chosen and of the rejected side."""
    from rlhf_pipeline.tokenization import ChatTokenizer

    def rewritten(change: Callable[[str], str]) -> tuple[Any, Any]:
        def chosen(_: EncodedPair, one: Preference) -> list[int]:
            return text.encode(one.prompt.messages, change(one.chosen), ended=not one.chosen_cut)

        def rejected(_: EncodedPair, one: Preference) -> list[int]:
            return text.encode(one.prompt.messages, change(one.rejected), ended=not one.rejected_cut)

        return chosen, rejected

    variants = {
        "a newline at the end": rewritten(lambda response: response + "\n"),
        "two spaces after a full stop": rewritten(lambda response: response.replace(". ", ".  ")),
    }
    if isinstance(text, ChatTokenizer):
        newline = text.newline_ids()
        variants["a newline after the end token"] = (
            lambda pair, _: [*pair.prompt, *pair.chosen, *newline],
            lambda pair, _: [*pair.prompt, *pair.rejected, *newline],
        )
        if (plain := text.with_plain_template()) is not None:
            variants["a plain transcript for a template"] = (
                lambda _, one: plain.encode(one.prompt.messages, one.chosen, ended=not one.chosen_cut),
                lambda _, one: plain.encode(one.prompt.messages, one.rejected, ended=not one.rejected_cut),
            )
    return variants


def _test_sets(job: Job, model: Scores, text: Text, *, batch_size: int) -> list[dict[str, Any]]:
    """Accuracy on other files of pairs, and on each part that such a file names (RewardBench's ``subset``)."""
    from rlhf_pipeline import reward_evaluation as evaluation
    from rlhf_pipeline.data import read_preferences
    from rlhf_pipeline.encoding import encode_pairs

    rows = []
    for source in job.config.evaluation.test_sets:
        loaded = read_preferences(source, system=job.settings.data.system, report=job.report_on("test_pairs"))
        encoded = encode_pairs(text, loaded.records, limit=job.config.max_length)
        job.say(f"{loaded.summary()}; {encoded.account('of them', job.config.max_length)}")
        judged = Judged(encoded.rows, [loaded.records[place] for place in encoded.kept])
        scored = score_pairs(model, text, judged, batch_size=batch_size)
        parts: dict[str, list[ScoredPair]] = {}
        for pair, record in zip(scored, judged.records, strict=True):
            if "subset" in record.meta:
                parts.setdefault(str(record.meta["subset"]), []).append(pair)
        subsets = {name: evaluation.accuracy(part) for name, part in sorted(parts.items())}
        rows.append(
            {
                "name": source.path,
                **evaluation.accuracy(scored).to_json(),
                "length_baseline": evaluation.length_baseline(scored).share.value,
                "subsets": {name: share.to_json() for name, share in subsets.items()},
                "sections": evaluation.rewardbench_sections(subsets),
            }
        )
    return rows


def _for_manifest(found: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that ``rlhf status``, benchmarks and the report look for, flat."""
    warnings = [warning["sentence"] for warning in found.get("warnings", [])]
    if not found["pairs"]:
        return {"accuracy": None, "pairs": 0, "warnings": warnings}
    flat: dict[str, Any] = {"pairs": found["pairs"]}
    for name in ("accuracy", "length_baseline", "ceiling"):
        share = found[name] or dict.fromkeys(("value", "low", "high"))
        flat |= {name: share["value"], f"{name}_low": share["low"], f"{name}_high": share["high"]}
    return {
        **flat,
        "margin": found["margin"],
        "calibration_error": found["calibration"]["error"],
        "temperature": found["calibration"]["temperature"],
        "length_correlation": found["length_correlation"]["within_pairs"],
        "warnings": warnings,
    }


def _sentence(found: Mapping[str, Any]) -> str:
    if not found["pairs"]:
        return "no pair is held out, so the accuracy is not known"
    right, length, ceiling = found["accuracy"], found["length_baseline"], found["ceiling"]
    text = (
        f"held-out accuracy {right['value']:.1%} (95 %: {right['low']:.1%} to {right['high']:.1%}, "
        f"{found['pairs']:,} pairs); length alone ({length['direction']} wins) {length['value']:.1%}"
    )
    if ceiling:
        text += f"; the judges' agreement allows {ceiling['value']:.1%}"
    return f"{text}; calibration error {found['calibration']['error']:.1%}"


def require_held_out(job: Job, held_out: Sequence[EncodedPair]) -> None:
    """Where nothing is held out, gates have nothing to be measured on, and no learning curve can be drawn.

    Raises:
        DataError: gates of preferences are set all the same.
    """
    wanted = job.config.evaluation
    if held_out:
        return
    if gates := [gate for gate in wanted.stop_on if gate != "rules"]:
        raise DataError(
            f"no pair is held out, so nothing can be said about {', '.join(gates)}",
            where="reward.evaluation.stop_on",
            advice="raise data.held_out or collect more judgements, or leave the gates out",
        )
    if wanted.learning_curve:
        job.say("no pair is held out, so there is no learning curve")


def prove_saved(
    job: Job, trained: RewardModel | Ensemble, loaded: RewardModel | Ensemble, pairs: Sequence[EncodedPair]
) -> float:
    """The largest difference of the scores of what was loaded from those of the trained model.

    Raises:
        TrainingError: the head was not trained or not saved, or the scores differ.
    """
    from rlhf_pipeline.reward_models import Ensemble

    members = loaded.members if isinstance(loaded, Ensemble) else [loaded]
    rows = [ids for column in columns(pairs[:_PARITY_PAIRS]).values() for ids in column]
    return prove_same(job, trained.score(rows, batch_size=16), loaded.score(rows, batch_size=16), *members)


def prove_same(job: Job, before: Sequence[float], after: Sequence[float], *loaded: RewardModel) -> float:
    """The largest difference of a trained model's outputs from those of what was saved and loaded.

    Raises:
        TrainingError: a head was not trained or not saved, or the outputs differ.
    """
    import torch

    if not all(one.head_weight.any() for one in loaded):
        raise TrainingError("the saved score head is zero as at the start, so training did not reach it")
    drift = max(abs(a - b) for a, b in zip(before, after, strict=True))
    exact = loaded[0].dtype == torch.float32 and job.device == "cpu"
    allowed = 1e-6 if exact else 1e-3
    scale = max(1.0, *(abs(score) for score in before))
    if not drift <= allowed * scale:
        raise TrainingError(
            f"after saving and loading, scores differ by up to {drift:.3g} (allowed: {allowed * scale:.0e})",
            where=str(job.folder),
            advice="this is a bug, or the disk is failing: please report it with the versions from manifest.json",
        )
    return drift
