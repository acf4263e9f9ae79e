"""LaTeX in Markdown, ``$…$  $$…$$  \\(…\\)  \\[…\\]``, as MathML, which browsers draw without a script.

A formula is drawn only where nothing of it would be lost: every letter and digit of the source must be on the screen.
Otherwise (an unknown command, a comment, a colour, a phantom, a mistake) the source itself is shown.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from functools import lru_cache

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

LONGEST_FORMULA = 2_000
"""Characters; a longer formula is shown as its source."""

MOST_LINES = 50
"""Of one formula; a longer one is text."""

MOST_FORMULAS = 300
"""Of one text; the others are shown as their source."""

TAGS = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msup", "msub", "msubsup", "mfrac", "msqrt", "mroot"),
    *("munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mmultiscripts", "mprescripts"),
}
ATTRIBUTES = {
    "math": {"display"},
    "mo": {"stretchy", "fence", "accent"},
    "mi": {"mathvariant"},
    "mover": {"accent"},
    "munder": {"accentunder"},
    "mfrac": {"linethickness"},
    "mtd": {"columnalign"},
    "mstyle": {"displaystyle"},
}

_NOT_SHOWN = re.compile(r"\\(?:begin|end)\{[a-zA-Z]+\*?\}(?:\{[clr|]+\})?|\\[a-zA-Z]+")
_MARKUP = re.compile(r"<[^>]*>")
_PAIRS = (("$$", "$$", True), ("\\[", "\\]", True), ("$", "$", False), ("\\(", "\\)", False))


def install(parser: MarkdownIt) -> MarkdownIt:
    """Teach a Markdown parser formulas."""
    parser.inline.ruler.before("escape", "formula", _inline)
    parser.block.ruler.before("fence", "formula", _block, {"alt": ["paragraph", "blockquote", "list"]})
    parser.add_render_rule("formula", _render)
    return parser


@lru_cache(maxsize=4096)
def to_mathml(source: str, *, display: bool) -> str | None:
    """A formula as inert MathML, or None where something of it would be lost."""
    if len(source) > LONGEST_FORMULA:
        return None
    try:
        drawn = convert(source, display="block" if display else "inline")
    except Exception:  # the converter fails in as many ways as formulas can be wrong: none of them matters here
        return None
    clean = nh3.clean(drawn, tags=TAGS, attributes=ATTRIBUTES, link_rel=None)
    missing = _signs(_NOT_SHOWN.sub(" ", source)) - _signs(html.unescape(_MARKUP.sub("", clean)))
    return None if missing or "\\" in clean else clean


def _signs(text: str) -> Counter[str]:
    """Letters and digits, whatever their style: ℝ and 𝐑 are R."""
    return Counter(c for c in unicodedata.normalize("NFKC", text) if c.isalnum())


def _inline(state: StateInline, silent: bool) -> bool:
    for opening, closing, display in _PAIRS:
        if not state.src.startswith(opening, state.pos):
            continue
        start = state.pos + len(opening)
        end = _close(state.src, start, closing, min(state.posMax, start + LONGEST_FORMULA))
        if end < 0:
            return False
        if not silent:
            _add(state.push("formula", "", 0), state.src[start:end], opening, closing, display)
        state.pos = end + len(closing)
        return True
    return False


def _close(text: str, start: int, closing: str, limit: int) -> int:
    """Where a formula ends, or -1. Single dollars follow pandoc, so that $5 and $10 are no formula."""
    end = text.find(closing, start, limit)
    while end > 0 and text[end - 1] == "\\" and closing.startswith("$"):
        end = text.find(closing, end + 1, limit)
    if end <= start or not text[start:end].strip() or "\n\n" in text[start:end]:
        return -1
    if closing == "$":
        after = text[end + 1 : end + 2]
        if text[start].isspace() or text[end - 1].isspace() or after.isdigit() or after == "$":
            return -1
    return end


def _block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """A formula that starts a line with ``$$`` or ``\\[`` and ends one: its lines are no list, rule or heading."""
    begin = state.bMarks[first] + state.tShift[first]
    for opening, closing, _ in _PAIRS[:2]:
        if state.is_code_block(first) or not state.src.startswith(opening, begin):
            continue
        for line in range(first, min(last, first + MOST_LINES)):
            start = begin + len(opening) if line == first else state.bMarks[line]
            text = state.src[start : state.eMarks[line]].strip()
            if closing in text[: -len(closing)] or (line > first and not text):
                return False
            if text.endswith(closing):
                whole = state.getLines(first, line + 1, state.blkIndent, False).strip()
                if not silent:
                    state.line = line + 1
                    _add(state.push("formula", "", 0), whole[len(opening) : -len(closing)], opening, closing, True)
                    state.tokens[-1].block = True
                return True
    return False


def _add(token: Token, content: str, opening: str, closing: str, display: bool) -> None:
    token.content = content
    token.markup = opening
    token.meta = {"closing": closing, "display": display}


def _render(_: object, tokens: list[Token], at: int, __: object, env: dict[str, int]) -> str:
    token = tokens[at]
    env["formulas"] = env.get("formulas", 0) + 1
    drawn = None
    if env["formulas"] <= MOST_FORMULAS:
        drawn = to_mathml(token.content.strip(), display=token.meta["display"])
    shown = drawn or html.escape(f"{token.markup}{token.content}{token.meta['closing']}")
    return f"<p>{shown}</p>\n" if token.block else shown
