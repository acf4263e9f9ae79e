from __future__ import annotations

import re

import pytest

from annotation_ui.formulas import ATTRIBUTES, TAGS
from annotation_ui.render import LONGEST_MARKDOWN, direction, to_html, visible
from tests.annotation_ui.hostile import HOSTILE

_BLOCK = r"(?:p|h[1-6]|ul|li|blockquote|table|th|td)"
_MATHML = "|".join(sorted(TAGS))
_MATHML_ATTRIBUTES = "|".join(sorted({name for names in ATTRIBUTES.values() for name in names}))
ALLOWED = re.compile(
    rf'</?(?:br|em|strong|s|code|pre|hr|thead|tbody|tr|span|ol|{_BLOCK})>|<{_BLOCK} dir="(?:ltr|rtl)">'
    r'|<li(?: value="\d+")?(?: dir="(?:ltr|rtl)")?>'
    r'|<ol(?: dir="(?:ltr|rtl)")?(?: start="\d+")?(?: dir="(?:ltr|rtl)")?>|<pre tabindex="0">|<span class="language">'
    rf'|</?(?:{_MATHML})(?: (?:{_MATHML_ATTRIBUTES})="[\w-]+")*>'
)


@pytest.mark.parametrize("text", HOSTILE)
def test_only_harmless_tags_come_out(text: str) -> None:
    left = ALLOWED.sub("", to_html(text))
    assert "<" not in left
    assert ">" not in left


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_is_hidden(text: str) -> None:
    """Every letter that the model wrote is on the page, but for the commands of formulas that are drawn."""
    shown = re.sub(r"\s", "", _text(to_html(text)))
    for word in re.findall(r"[^\W_]+", re.sub(r"\\[a-z]+", " ", visible(text))):
        assert word in shown


def _text(html: str) -> str:
    import html as escapes

    return escapes.unescape(re.sub(r"</?[a-z][^>]*>", "", html))


def test_markdown_is_shown_as_such() -> None:
    html = to_html("# T\n\n**b** *i* ~~s~~ `c`\n\n3. x\n\n| a |\n|---|\n| 1 |\n\n> q\nline\nbreak")
    html = html.replace(' dir="ltr"', "")
    for tag in ("<h1>T", "<strong>b", "<em>i", "<s>s", "<code>c", '<ol start="3">', "<td>1", "<blockquote>", "<br>"):
        assert tag in html


@pytest.mark.parametrize(
    "text",
    [
        *("2*3*4", "7*7 *{7*7}", "a*b*c", "2**10 and 3**4", "f(x)*2*g(x)", "x*2 is 2*x", "5* and 4*", "3 * 4 * 5"),
        *("__init__ and __init__.py", "snake_case_name", "2^3_4"),
    ],
)
def test_signs_that_belong_to_the_text_stay(text: str) -> None:
    assert to_html(text) == f'<p dir="{direction(text)}">{text}</p>\n'.replace(' dir="None"', "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("*one* **two** five_six_", "<em>one</em> <strong>two</strong> five_six_"),
        ("_it_ and __both words__", "<em>it</em> and <strong>both words</strong>"),
        ("这是**重要**的*话*。", "这是<strong>重要</strong>的<em>话</em>。"),
        ("**H**yper**T**ext", "<strong>H</strong>yper<strong>T</strong>ext"),
        ("*2* and **3*4**", "<em>2</em> and <strong>3*4</strong>"),
    ],
)
def test_emphasis_is_shown_as_such(text: str, shown: str) -> None:
    assert shown in to_html(text)


def test_lists_keep_the_numbers_that_were_written() -> None:
    assert re.findall(r'<li[^>]* value="(\d+)"', to_html("1. a\n2. b\n2. c\n7. d")) == ["1", "2", "2", "7"]
    assert "value" not in to_html("- a\n- b")


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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hello سلام", "ltr"),
        ("«سلام» hello", "rtl"),
        ("1. (עברית)", "rtl"),
        ("12 + 3 …", None),
        ("", None),
        ("你好", "ltr"),
    ],
)
def test_the_first_letter_gives_the_direction(text: str, found: str | None) -> None:
    assert direction(text) == found


def test_each_block_has_its_own_direction() -> None:
    html = to_html("سلام\n\nhello\n\n- عنوان\n- two\n\n> **مهم**\n\n| نام | 2 |\n|---|---|\n| x | ۱ |")
    for tag in (
        "<p dir=rtl>س",
        "<p dir=ltr>h",
        "<ul dir=rtl>",
        "<li dir=rtl>ع",
        "<li dir=ltr>t",
        "<blockquote dir=rtl>",
    ):
        assert re.sub(r"dir=(\w+)", r'dir="\1"', tag) in html
    for tag in ('<table dir="rtl">', '<th dir="rtl">نام', "<th>2", '<td dir="ltr">x', "<td>۱"):
        assert tag in html


def test_what_follows_a_fence_is_shown_above_the_code() -> None:
    html = to_html("```py title\nif a < b: pass\n```")
    assert html.startswith('<span class="language">py title</span><pre tabindex="0"><code>if a &lt; b: pass\n</code>')


SLOW = ("$$ x\n" * 9000, "\\[" * 24_000, "\\(a " * 12_000, "$a" * 24_000, "\\[ x\n" * 8000, "- $$ x\n" * 6000)


def test_huge_and_deeply_nested_texts_are_shown_in_no_time() -> None:
    assert to_html("*a " * LONGEST_MARKDOWN).startswith("<pre>")
    for text in (*SLOW, ">" * 5000 + "x", "[" * 20_000, "- " * 10_000, "`" * 20_000, "*" * 20_000, "|" * 20_000):
        assert to_html(text)
