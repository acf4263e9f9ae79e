"""Text of a model or a person → HTML that shows all of it and does nothing.

Model text is never trusted: raw HTML stays visible text, links and images stay as they were written (nothing is
fetched, nothing can be clicked, no address hides behind a word), and characters that cannot be seen are shown by name.
Stars and underscores that are no emphasis but for the letter of CommonMark (2*3*4, __init__) stay, and lists keep the
numbers that were written.
What Markdown makes of the rest passes through a sanitiser as a second line. The page can always show the text itself.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from annotation_ui import formulas

LONGEST_MARKDOWN = 50_000
"""Characters; longer texts are shown as they are, because Markdown takes more than a moment."""

_TAGS = {
    *("p", "br", "em", "strong", "s", "code", "pre", "blockquote", "hr", "ul", "ol", "li", "span"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
_WITH_DIRECTION = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "table", "th", "td"}
_ATTRIBUTES = {"ol": {"start"}, "li": {"value"}}
_VALUES = {"pre": {"tabindex": {"0"}}} | {tag: {"dir": {"ltr", "rtl"}} for tag in _WITH_DIRECTION}

# Controls, direction marks and overrides, separators, fillers; not ZWNJ and ZWJ, which Persian and emoji need.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)

# A digit beside any number of stars, or Latin letters on both sides of a single one: no script that is written without
# blanks between its words, so that 这是**重要**的 stays bold.
_LITERAL = re.compile(
    r"(?<=[0-9])\*+(?=[0-9A-Za-z(])|(?<=[0-9A-Za-z)])\*+(?=[0-9])|(?<=[A-Za-z])(?<!\*)\*(?=[A-Za-z])"
    r"|(?<!\w)__[A-Za-z]\w*?__(?!\w)",
    re.ASCII,
)


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    parser.disable(["image", "link", "autolink", "reference", "entity", "html_block", "html_inline"])
    parser.inline.ruler.before("emphasis", "literal", _literal)
    parser.add_render_rule("fence", _fence)
    return formulas.install(parser)


@lru_cache(maxsize=4096)
def to_html(text: str) -> str:
    """Markdown of an untrusted text as inert HTML, each block in the direction of its first letter."""
    shown = visible(text)
    if len(shown) > LONGEST_MARKDOWN:
        return f"<pre>{html.escape(shown)}</pre>"
    tokens = _PARSER.parse(shown)
    _set_directions(tokens)
    _keep_numbers(tokens)
    return nh3.clean(
        _PARSER.renderer.render(tokens, _PARSER.options, {}),
        tags=_TAGS | formulas.TAGS,
        attributes=_ATTRIBUTES | formulas.ATTRIBUTES,
        tag_attribute_values=_VALUES,
        allowed_classes={"span": {"language"}},
        link_rel=None,
    )


def visible(text: str) -> str:
    """The text with characters that cannot be seen, or that reorder others, written as ⟦U+202E⟧."""
    return _UNSEEN.sub(lambda found: f"⟦U+{ord(found.group()):04X}⟧", text.replace("\r\n", "\n"))


def direction(text: str) -> str | None:
    """``ltr`` or ``rtl`` after the first letter that has a direction; None where none has."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind == "L":
            return "ltr"
        if kind in ("R", "AL"):
            return "rtl"
    return None


def _set_directions(tokens: Sequence[Token]) -> None:
    """Give each block, lists and tables included, the direction of its own text: ``dir=auto`` skips nested blocks."""
    open_blocks: list[Token] = []
    for token in tokens:
        if token.nesting == 1:
            open_blocks.append(token)
        elif token.nesting == -1:
            open_blocks.pop()
        elif token.type == "inline":
            found = direction(token.content)
            for block in open_blocks if found else ():
                if block.tag in _WITH_DIRECTION and block.attrGet("dir") is None:
                    block.attrSet("dir", str(found))


def _keep_numbers(tokens: Sequence[Token]) -> None:
    """Number the items of a list as they were written: Markdown would count by itself and mend 1, 2, 2."""
    for token in tokens:
        if token.type == "list_item_open" and token.info.isdecimal():
            token.attrSet("value", token.info)


def _literal(state: StateInline, silent: bool) -> bool:
    """Stars in sums and products (2*3*4, a*b, 2**10), and underscores around a name of code (__init__), as text."""
    found = _LITERAL.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.pending += found.group()
    state.pos = found.end()
    return True


def _fence(_: object, tokens: Sequence[Token], at: int, __: object, ___: object) -> str:
    """A code block; what follows its fence (the language, or anything) is shown above it."""
    token = tokens[at]
    info = token.info.strip()
    named = f'<span class="language">{html.escape(info)}</span>' if info else ""
    return f'{named}<pre tabindex="0"><code>{html.escape(token.content)}</code></pre>\n'


_PARSER = _parser()
