"""Every language says everything, and the files say nothing that is not asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from annotation_ui import languages

ROOT = Path(languages.__file__).parent
CODE = "\n".join(
    path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("static/*.js"), *ROOT.glob("static/*.html")]
)
# Keys that are put together from parts.
MADE = {
    *(f"role.{role}" for role in ("user", "assistant", "system")),
    *(f"choose.strength{n}" for n in (1, 2, 3)),
    *(f"help.{key}" for key in ("s", "u", "x", "g", "h", "esc", "help")),
    *(f"problem.{name}" for name in ("offline", "signed_out", "server")),
    *("drawer.guidelines", "drawer.history"),
    *(f"invite.{kind}_{part}" for kind in ("new", "known") for part in ("title", "lead", "submit")),
}


@pytest.mark.parametrize("code", ["fa", "es", "ru"])
def test_every_language_has_the_same_keys_and_the_same_gaps(code: str) -> None:
    ours, english = languages.words(code), languages.words("en")
    assert ours.keys() == english.keys()
    for key, text in english.items():
        assert set(re.findall(r"{\w+}", ours[key])) == set(re.findall(r"{\w+}", text)), key
        assert ours[key].strip(), key


@pytest.mark.parametrize("code", ["fa", "es", "ru"])
def test_nothing_was_left_in_english(code: str) -> None:
    same = {key for key, text in languages.words(code).items() if text == languages.words("en")[key]}
    assert same <= {"number", "direction", "missing.question", "plain.rating", "choose.undo"}, same


def test_every_key_is_used_and_every_used_key_is_there() -> None:
    keys = set(languages.words("en"))
    asked = set(re.findall(r"""\b(?:[tT]\(|t\[|words\[)\s*f?["'`]([a-z_.0-9]+)["'`]""", CODE))
    assert asked - keys == set()
    used = {key for key in keys if re.search(rf"""["'`]{re.escape(key)}["'`]""", CODE)} | MADE | {"language"}
    assert keys - used == set()


def test_the_list_names_each_language_in_itself() -> None:
    assert languages.languages() == {"en": "English", "es": "Español", "fa": "فارسی", "ru": "Русский"}


@pytest.mark.parametrize(
    ("wanted", "accept", "found"),
    [
        ((None,), "", "en"),
        ((None,), "fa-IR,fa;q=0.9,en;q=0.8", "fa"),
        ((None,), "de, ru;q=0.5, es;q=0.7", "es"),
        ((None,), "de-CH, fr", "en"),
        ((None,), "ru;q=0, es;q=0.1", "es"),
        ((None,), "ru;q=x, ;;;,,, q=1", "en"),
        (("ru",), "fa", "ru"),
        (("../../etc/passwd",), "fa", "fa"),
        ((None, "es-MX"), "fa", "es"),
    ],
)
def test_which_language_is_spoken(wanted: tuple[str | None, ...], accept: str, found: str) -> None:
    assert languages.choose(*wanted, accept=accept) == found
