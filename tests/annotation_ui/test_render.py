from __future__ import annotations

import re

import pytest

from annotation_ui.render import LONGEST_MARKDOWN, to_html, visible

ALLOWED = re.compile(
    r'</?(?:p|br|em|strong|s|code|pre|blockquote|hr|ul|li|h[1-6]|table|thead|tbody|tr|th|td)>|</?ol(?: start="\d+")?>'
)

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    '<iframe src="javascript:alert(1)"></iframe>',
    '<form action="https://evil.test"><input type=password></form>',
    '<meta http-equiv=refresh content="0;url=https://evil.test">',
    "<style>*{display:none}</style>",
    "<!-- hidden -->",
    "<think>secret</think>",
    "[click](javascript:alert(1))",
    "[click](https://evil.test 'title')",
    "![beacon](https://evil.test/b.png)",
    "<https://evil.test>",
    "[x]: https://evil.test 'hidden'\n\n[x]",
    "${alert(1)} {{constructor.constructor('alert(1)')()}} <%= 1 %>",
    "`<b>`\n\n```html\n<script>1</script>\n```",
    "&lt;script&gt; &#60;img&#62; &amp;",
    "a<b>c</b>",
    "</textarea></pre></div><script>1</script>",
    '"><img src=x>',
]


@pytest.mark.parametrize("text", HOSTILE)
def test_only_harmless_tags_come_out(text: str) -> None:
    left = ALLOWED.sub("", to_html(text))
    assert "<" not in left
    assert ">" not in left


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_is_hidden(text: str) -> None:
    """Every letter that the model wrote is on the page (the language of a code block, after its fence, aside)."""
    shown = re.sub(r"\s", "", _text(to_html(text)))
    for word in re.findall(r"\w+", re.sub(r"```\w*", "", text)):
        assert word in shown


def _text(html: str) -> str:
    import html as escapes

    return escapes.unescape(re.sub(r"</?[a-z][^>]*>", "", html))


def test_markdown_is_shown_as_such() -> None:
    html = to_html("# T\n\n**b** *i* ~~s~~ `c`\n\n3. x\n\n| a |\n|---|\n| 1 |\n\n> q\nline\nbreak")
    for tag in ("<h1>T", "<strong>b", "<em>i", "<s>s", "<code>c", '<ol start="3">', "<td>1", "<blockquote>", "<br>"):
        assert tag in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a⟦U+0000⟧b"),
        ("safe\u202egnp.exe", "safe⟦U+202E⟧gnp.exe"),
        ("a\u200bb", "a⟦U+200B⟧b"),
        ("a\ud800b", "a⟦U+D800⟧b"),
        ("tag\U000e0041", "tag⟦U+E0041⟧"),
        ("می‌خواهم", "می‌خواهم"),
        ("👩‍🔬", "👩‍🔬"),
        ("a\r\nb\tc", "a\nb\tc"),
    ],
)
def test_what_cannot_be_seen_is_named(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_huge_and_deeply_nested_texts_are_shown_in_no_time() -> None:
    assert to_html("*a " * LONGEST_MARKDOWN).startswith("<pre>")
    for text in (">" * 5000 + "x", "[" * 20_000, "- " * 10_000, "`" * 20_000, "*" * 20_000, "|" * 20_000):
        assert to_html(text)
