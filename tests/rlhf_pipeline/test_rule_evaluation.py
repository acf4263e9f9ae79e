"""What is said of a rule model, by hand, and the words for rules that cannot be relied on."""

from __future__ import annotations

import pytest

from rlhf_pipeline.ensembles import auc
from rlhf_pipeline.records import RuleVotes
from rlhf_pipeline.rule_evaluation import measure_rule, rule_sentence, rule_warnings

YES, NO, HALF = RuleVotes(1.0, 1), RuleVotes(0.0, 1), RuleVotes(0.5, 2)


def test_numbers_by_hand() -> None:
    found = measure_rule("rude", [2.0, 1.0, -1.0, -2.0, 0.5, 9.0, -3.0], [YES, NO, NO, NO, HALF, None, YES])
    assert (found["responses"], found["broken"]) == (5, 2)
    # of 2 · 3 pairs of a broken and a kept one, 2.0 leads three and -3.0 none
    assert found["auc"]["value"] == pytest.approx(3 / 6)
    assert found["auc"] == dict(zip(("value", "low", "high"), auc([2, 1, -1, -2, -3], [1, 0, 0, 0, 1]), strict=True))  # type: ignore[arg-type, list-item]
    assert found["accuracy"]["value"] == pytest.approx(3 / 5)
    assert found["baseline"]["value"] == pytest.approx(3 / 5)
    assert sum(one["pairs"] for one in found["calibration"]["bins"]) == 6
    assert rule_sentence(found).startswith("rule 'rude': broken in 2 of 5 held-out responses; recognised with")


def test_the_baseline_says_what_is_commoner() -> None:
    assert measure_rule("x", [1.0] * 4, [YES, YES, YES, NO])["baseline"]["value"] == 0.75
    assert measure_rule("x", [1.0] * 4, [NO, NO, NO, YES])["baseline"]["value"] == 0.75


def test_where_nothing_can_be_said_nothing_is() -> None:
    nothing = measure_rule("x", [1.0], [None])
    assert (nothing["responses"], nothing["auc"], nothing["accuracy"], nothing["calibration"]) == (0, None, None, None)
    one_sided = measure_rule("x", [1.0, 2.0], [NO, NO])
    assert one_sided["auc"] is None
    assert rule_sentence(one_sided) == "rule 'x': broken in 0 of 2 held-out responses"


def rows(shift: float, *, broken: int = 60, kept: int = 60, spread: float = 1.0) -> list[dict[str, object]]:
    """Log-odds whose two kinds lie ``shift`` apart, evenly spread."""
    lie = [spread * (i % 20 - 9.5) / 20 for i in range(max(broken, kept))]
    odds = [shift / 2 + one for one in lie[:broken]] + [-shift / 2 + one for one in lie[:kept]]
    return [measure_rule("be kind", odds, [YES] * broken + [NO] * kept)]


@pytest.mark.parametrize(
    ("measured", "unlearnt", "words"),
    [
        (rows(8.0), {}, []),
        (rows(0.0, spread=0.4), {}, ["cannot be told from guessing"]),
        (rows(0.0, spread=8.0), {}, ["cannot be told from guessing", "away from what judges say"]),
        (rows(8.0, broken=4), {}, ["only 4 of 64 held-out responses have the rule 'be kind' broken"]),
        (rows(8.0, kept=0), {}, ["only 0 of 60 held-out responses have the rule 'be kind' kept"]),
        (rows(8.0), {"rare": "too few"}, ["the rule 'rare' is not learnt, and costs nothing: too few"]),
    ],
)
def test_warnings(measured, unlearnt, words) -> None:
    found = rule_warnings(measured, unlearnt)
    assert len(found) == len(words)
    for warning, word in zip(found, words, strict=True):
        assert word in warning["sentence"]
        assert warning["gate"] == "rules"
