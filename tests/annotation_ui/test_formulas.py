from __future__ import annotations

import pytest

from annotation_ui.formulas import LONGEST_FORMULA, MOST_FORMULAS, to_mathml
from annotation_ui.render import to_html


@pytest.mark.parametrize(
    "source", ["$x_1$", "\\(x_1\\)", "a $x_1$, b", "($x_1$)", "- $x_1$", "| $x_1$ |\n|---|", "**$x_1$**", "*a $x_1$ b*"]
)
def test_formulas_in_a_line(source: str) -> None:
    assert '<math display="inline"><mrow><msub><mi>x</mi><mn>1</mn></msub></mrow></math>' in to_html(source)


@pytest.mark.parametrize(
    "source",
    [
        "$$x_1$$",
        "$$\nx_1\n$$",
        "\\[x_1\\]",
        "\\[\n  x_1\n\\]",
        "so:\n\\[ x_1 \\]\nthus",
        "see $$x_1$$ here",
        "> $$\n> x_1\n> $$",
    ],
)
def test_formulas_on_lines_of_their_own(source: str) -> None:
    assert '<math display="block"><mrow><msub><mi>x</mi><mn>1</mn></msub></mrow></math>' in to_html(source)


def test_lines_of_a_formula_are_no_list_and_no_heading() -> None:
    html = to_html("$$\na\n- b\n= c\n$$")
    assert "<ul" not in html
    assert "<h" not in html
    assert "<mo>−</mo><mi>b</mi><mo>=</mo><mi>c</mi>" in html


@pytest.mark.parametrize(
    "source",
    [
        "$5 and $10",
        "US$5, US$6",
        "between $5-$10",
        "`$x$`",
        "```\n$x$\n```",
        "    $x$",
        "$ x $",
        "$$ $$",
        "$",
        "\\(",
        "\\$x\\$",
        "$$x",
    ],
)
def test_money_code_and_lonely_signs_are_no_formulas(source: str) -> None:
    assert "<math" not in to_html(source)


@pytest.mark.parametrize(
    "source",
    [
        "\\text{<b>bold</b>}",
        "\\color{white}{x}",
        "\\href{http://evil.test}{x}",
        "x % y",
        "\\foo{x}",
        "\\hspace{9em}x",
        "x_",
        "{" * 400,
        "\\left(",
        "a_b_c",
        "x" * (LONGEST_FORMULA + 1),
    ],
)
def test_what_cannot_be_drawn_whole_is_shown_as_it_was_written(source: str) -> None:
    assert to_mathml(source, display=False) is None
    html = to_html(f"a ${source}$ b")
    assert "<math" not in html
    assert html.count("$") == 2


def test_a_phantom_is_seen() -> None:
    drawn = to_mathml(r"\phantom{ab}", display=False)
    assert drawn is not None
    assert "phantom" not in drawn
    assert "<mi>a</mi><mi>b</mi>" in drawn


def test_styles_of_letters_count_as_the_letters() -> None:
    assert "ℝ" in (to_mathml(r"\mathbb{R}", display=False) or "")
    assert "𝐱" in (to_mathml(r"\mathbf{x}", display=False) or "")


def test_the_formulas_of_one_text_are_counted() -> None:
    html = to_html("$x$ " * (MOST_FORMULAS + 5))
    assert html.count("<math") == MOST_FORMULAS
    assert html.count("$x$") == 5
