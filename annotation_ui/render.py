"""Text of a model or a person → HTML that shows all of it and does nothing.

Model text is never trusted: raw HTML stays visible text, links and images stay as they were written (nothing is
fetched, nothing can be clicked, no address hides behind a word), and characters that cannot be seen are shown by name.
What Markdown makes of the rest passes through a sanitiser as a second line. The page can always show the text itself.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt

LONGEST_MARKDOWN = 50_000
"""Characters; longer texts are shown as they are, because Markdown takes more than a moment."""

_TAGS = {
    *("p", "br", "em", "strong", "s", "code", "pre", "blockquote", "hr", "ul", "ol", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}

_PARSER = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(["image", "link", "autolink", "reference", "entity", "html_block", "html_inline"])
)

# Controls, direction marks and overrides, separators, fillers; not ZWNJ and ZWJ, which Persian and emoji need.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


@lru_cache(maxsize=4096)
def to_html(text: str) -> str:
    """Markdown of an untrusted text as inert HTML."""
    shown = visible(text)
    if len(shown) > LONGEST_MARKDOWN:
        return f"<pre>{html.escape(shown)}</pre>"
    return nh3.clean(_PARSER.render(shown), tags=_TAGS, attributes={"ol": {"start"}}, link_rel=None)


def visible(text: str) -> str:
    """The text with characters that cannot be seen, or that reorder others, written as ⟦U+202E⟧."""
    return _UNSEEN.sub(lambda found: f"⟦U+{ord(found.group()):04X}⟧", text.replace("\r\n", "\n"))
