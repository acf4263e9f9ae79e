"""The languages of the interface: one JSON file each in ``locales``, the same keys in all."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent / "locales"
DEFAULT = "en"
COOKIE = "rlhf_language"


@lru_cache(maxsize=1)
def languages() -> dict[str, str]:
    """Code → name in the language itself; English first."""
    codes = sorted((path.stem for path in FOLDER.glob("*.json")), key=lambda code: (code != DEFAULT, code))
    return {code: words(code)["language"] for code in codes}


@lru_cache(maxsize=16)
def words(code: str) -> dict[str, str]:
    """Every text of the interface in one language, by key."""
    read: dict[str, str] = json.loads((FOLDER / f"{code}.json").read_text(encoding="utf-8"))
    return read


def choose(*wanted: str | None, accept: str = "") -> str:
    """The first of the wanted languages that there is, else the best of an ``Accept-Language`` header, else English."""
    for code in wanted:
        if code and code.lower().split("-")[0] in languages():
            return code.lower().split("-")[0]
    ranked: list[tuple[float, str]] = []
    for part in accept[:500].split(","):
        tag, _, quality = part.strip().partition(";q=")
        try:
            ranked.append((-float(quality or 1), tag.lower().split("-")[0]))
        except ValueError:
            continue
    best = [code for quality, code in sorted(ranked, key=lambda one: one[0]) if code in languages() and quality < 0]
    return best[0] if best else DEFAULT
