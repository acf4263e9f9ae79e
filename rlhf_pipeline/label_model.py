"""Functions that vote on a pair or abstain → how good each is, without anybody's judgement, and what they say together.

Ratner et al. 2016, Data Programming, arXiv:1605.07723; Ratner et al. 2019, Snorkel, arXiv:1711.10160.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_pipeline.agreement import Floats
from rlhf_pipeline.errors import DataError
from rlhf_pipeline.records import Prompt
from rlhf_pipeline.rewards import told
from rlhf_pipeline.vote_models import PRIOR_RIGHT

LabellingFunction = Callable[[list[dict[str, str]], str, str], int]
"""``(prompt, response_a, response_b) -> 1`` where a is better, ``-1`` where b is, ``0`` to abstain."""
_ITERATIONS, _TOLERANCE = 1000, 1e-8


@dataclass(frozen=True, slots=True)
class Quality:
    """One function: the share of the pairs on which it votes, and how often its votes are right by the model."""

    coverage: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class LabelModel:
    """A fitted model.

    Args:
        functions: by name.
        probability: of the first response being the better one, ``(pairs,)``; exactly 0.5 where all abstain.
    """

    functions: Mapping[str, Quality]
    probability: Floats


def fit_label_model(votes: Floats, names: Sequence[str]) -> LabelModel:
    """The generative model of labelling functions that err independently of one another, by EM.

    Either response is the better one with 1/2; function j votes on any pair with ``β_j`` and is then right with
    ``α_j``. With ``T_i`` the posterior of the first of pair i being better, and ``λ_ij`` in 1, -1, 0 ::

        M:  α_j = (Σ_i [λ_ij = 1] T_i + [λ_ij = -1] (1 - T_i) + prior) / (Σ_i |λ_ij| + priors)
        E:  log(T_i / (1 - T_i)) = Σ_j λ_ij log(α_j / (1 - α_j))

    Ratner et al. 2016, arXiv:1605.07723, section 3, with one accuracy and one propensity for each function. Two
    functions that say the same for the same reason count twice: give one. Accuracies start, and are held by a weak
    prior, above one half; without it all being right and all being wrong would be as likely.

    Args:
        votes: λ, ``(pairs, functions)``.
        names: of the functions, in the order of the columns.
    """
    said = np.abs(votes)
    given = said.sum(0)
    start = PRIOR_RIGHT[0] / sum(PRIOR_RIGHT)
    accuracy = np.full(votes.shape[1], start)
    truth = np.full(votes.shape[0], 0.5)
    for _ in range(_ITERATIONS):
        truth = 1 / (1 + np.exp(-(votes @ np.log(accuracy / (1 - accuracy)))))
        right = (np.where(votes > 0, truth[:, None], 1 - truth[:, None]) * said).sum(0)
        before, accuracy = accuracy, (right + PRIOR_RIGHT[0]) / (given + sum(PRIOR_RIGHT))
        if not accuracy.size or np.abs(accuracy - before).max() <= _TOLERANCE:
            break
    coverage = given / max(len(votes), 1)
    functions = {name: Quality(float(c), float(a)) for name, c, a in zip(names, coverage, accuracy, strict=True)}
    return LabelModel(functions, truth)


def vote_on(function: LabellingFunction, path: Path, name: str, pairs: Sequence[tuple[Prompt, str, str]]) -> list[int]:
    """What a function says of each pair of responses to a prompt.

    Raises:
        DataError: it fails, or says something else than 1, -1 or 0.
    """
    votes = []
    for prompt, first, second in pairs:
        try:
            vote: Any = function([message.to_json() for message in prompt.messages], first, second)
        except (Exception, SystemExit) as error:
            raise DataError(
                f"the labelling function {name} failed: {told(error, path)}", where=str(path), advice="mend it"
            ) from error
        if isinstance(vote, bool) or vote not in (1, -1, 0):
            raise DataError(
                f"the labelling function {name} said {vote!r}",
                where=str(path),
                advice="let it return 1 where the first response is better, -1 where the second is, 0 to abstain",
            )
        votes.append(int(vote))
    return votes
