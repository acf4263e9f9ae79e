"""Every kind of answer that a round can ask for, given in a real browser by keyboard and by mouse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_pipeline.store.records import Attribute, Form
from tests.browser.conftest import Site
from tests.browser.rounds import READY, TOO_SOON_MS, make_round, press, sent, task_of, texts_by_id, texts_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FOUR = [[f"{letter} {i}" for letter in ("one", "two", "three", "four")] for i in range(4)]
QUESTIONS = Form(
    all_bad=True,
    rules=("no lies", "no insults"),
    attributes=(Attribute("helpful", "not at all", "very", 5),),
    correction=True,
    comment=True,
    flags=("private", "not my language"),
)


def ranking_of(site: Site, number: int = -1) -> list[list[str]]:
    row = site.store.judgements(site.round_id)[number]
    texts = texts_by_id(site.store, site.round_id)
    assert row.ranking is not None
    return [[texts[id_] for id_ in group] for group in row.ranking]


def test_strength_is_one_press_on_a_scale(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 10, form=Form(strength=True, all_bad=True)))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    shown = []
    for key in "12345678":
        shown.append(texts_of(page))
        press(page, key)
    page.wait_for_timeout(TOO_SOON_MS)
    page.click("#pick-b3")
    sent(page)
    rows = site.store.judgements(site.round_id)
    texts = texts_by_id(site.store, site.round_id)
    given = [
        (row.choice, row.strength, row.response_id and shown[i].index(texts[row.response_id]))
        for i, row in enumerate(rows[:8])
    ]
    first, second = [("response", s, 0) for s in (3, 2, 1)], [("response", s, 1) for s in (1, 2, 3)]
    assert given == [*first, ("tie", None, None), *second, ("all_bad", None, None)]
    assert [row.margin for row in rows[:3]] == [3, 2, 1]
    assert (rows[8].strength, rows[8].keys_used, rows[0].keys_used) == (3, False, True)


def test_ranking_by_keyboard(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, FOUR, form=Form(kind="ranking", all_bad=True)))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    one, two, three, four = texts_of(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Still missing: the place of A B C D")
    for key in ("3", "1", "Backspace", "=", "4", "1", "1"):  # 1 is placed and taken out again, twice
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Still missing: the place of A B")
    assert site.store.judgements(site.round_id) == []
    press(page, "2", "1", "Enter")
    sent(page)
    assert ranking_of(site) == [[three, four], [two], [one]]
    press(page, "n", "Enter")
    sent(page)
    assert [row.choice for row in site.store.judgements(site.round_id)] == ["ranking", "all_bad"]


def test_ranking_by_mouse(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, FOUR, form=Form(kind="ranking")))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    shown = texts_of(page)
    for place in (0, 1, 2, 3):
        page.click(f"#rank-{place}")
    page.click("#sign-1")  # the first two are tied …
    page.click("#chip-2")  # … the third is taken out …
    page.click("#rank-2")  # … and put last …
    page.drag_and_drop("#chip-3", "#chip-0")  # … and the fourth dragged to the front
    page.wait_for_function("document.querySelector('#line .chip').textContent === 'D'")
    assert page.locator("#line .chip").all_inner_texts() == ["D", "A", "B", "C"]
    page.focus("#chip-2")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#line .chip").all_inner_texts() == ["D", "A", "C", "B"]
    page.click("#submit")
    sent(page)
    assert ranking_of(site) == [[shown[3]], [shown[0]], [shown[2]], [shown[1]]]


def test_ranking_by_finger(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, FOUR, form=Form(kind="ranking")))
    context = site.context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = site.page("Ann", context=context)
    page.wait_for_selector(READY)
    for place in (0, 1, 2, 3):
        page.tap(f"#rank-{place}")
    page.tap("#chip-0")  # a tap is no drag: it takes out
    page.wait_for_selector("#chip-0", state="detached")
    page.tap("#rank-0")
    page.wait_for_selector("#chip-0")
    finger = context.new_cdp_session(page)
    ends = [page.locator(f"#chip-{place}").bounding_box() for place in (0, 1)]
    (x, y), (to_x, to_y) = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in ends]
    for step in range(6):
        at = {"x": x + (to_x - x) * step / 5, "y": y + (to_y - y) * step / 5}
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove" if step else "touchStart", "touchPoints": [at]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("document.querySelector('#line .chip').textContent === 'A'")
    assert page.locator("#line .chip").all_inner_texts() == ["A", "B", "C", "D"]


MOVES: list[tuple[Any, int, int, Any]] = [
    ([[0], [1, 2], [3]], 1, 3, [[0], [2], [3], [1]]),  # the head of a tie leaves it, and the rest joins nobody
    ([[0], [1, 2], [3]], 2, 0, [[2], [0], [1], [3]]),
    ([[0, 1, 2], [3]], 1, 3, [[0, 2], [3], [1]]),  # out of the middle of a tie: the others stay tied
    ([[0], [1, 2], [3]], 3, 2, [[0], [1], [3], [2]]),  # into a tie: it is split
    ([[0], [1], [2], [3]], 0, 9, [[0], [1], [2], [3]]),  # nowhere
]


def test_a_response_that_is_moved_leaves_its_tie(serve: Callable[..., Site], tmp_path: Path) -> None:
    page = serve(*make_round(tmp_path, 1)).page("Ann")
    for groups, place, to, after in MOVES:
        moved = page.evaluate(
            """async ([groups, place, to]) => {
              const { Sheet } = await import("/app/sheet.js");
              const form = { kind: "ranking", rules: [], attributes: [], flags: [] };
              const sheet = new Sheet({ form, responses: [0, 1, 2, 3] }, { groups });
              sheet.move(place, to);
              return sheet.groups;
            }""",
            [groups, place, to],
        )
        assert moved == after, groups


def test_ranking_without_ties_offers_none(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, [[str(n) for n in range(9)]], form=Form(kind="ranking", tie=False)))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    shown = texts_of(page)
    press(page, *"9=8=7654321", "Enter")
    sent(page)
    assert ranking_of(site) == [[text] for text in shown[::-1]]


def test_a_form_with_everything_by_keyboard(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 2, form=QUESTIONS))
    page = site.page("Ann")
    page.wait_for_selector(READY)
    at, shown = task_of(page), texts_of(page)
    for key in ("1", "1", "2", "4"):  # the first is better; it keeps one rule, breaks the other, is rated 4
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Still missing: B: no lies · B: no insults · B: helpful")
    assert task_of(page) == at
    for key in ("2", "2", "5"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.id") == "submit"  # nothing is missing any more
    page.keyboard.press("c")
    page.keyboard.type("because 1 is shorter")
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    page.keyboard.press("End")
    page.keyboard.press("Control+End")
    page.keyboard.type(", indeed")
    press(page, "Control+Enter")
    sent(page)
    [row] = site.store.judgements(site.round_id)
    ids = list(row.shown_order)
    texts = texts_by_id(site.store, site.round_id)
    assert [texts[id_] for id_ in ids] == shown
    assert (row.choice, row.response_id) == ("response", ids[0])
    assert {id_: set(broken) for id_, broken in row.rules.items()} == {
        ids[0]: {"no insults"},
        ids[1]: {"no lies", "no insults"},
    }
    assert row.ratings == {ids[0]: {"helpful": 4}, ids[1]: {"helpful": 5}}
    assert (row.comment, row.flags) == ("because 1 is shorter", ("private",))
    assert (row.corrected_id, row.correction) == (ids[0], f"{shown[0]}, indeed")
    press(page, "s")  # a skip needs no answers
    sent(page)
    assert site.store.judgements(site.round_id)[1].choice == "skip"


def test_a_form_with_everything_by_mouse(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve(*make_round(tmp_path, 1, form=QUESTIONS))
    page = site.page("Ann", context=site.context(viewport={"width": 390, "height": 844}))
    page.wait_for_selector(READY)
    shown = texts_of(page)
    page.click("#submit")
    page.wait_for_selector("text=Still missing: your choice")
    page.click("#pick-bad")
    for place in (0, 1):
        page.locator(f"#rule-{place}-0 input").first.check()
        page.locator(f"#rule-{place}-1 input").last.check()
        page.locator(f"#rating-{place}-0 input").nth(2).check()
    page.click("#correct-1")
    page.fill("#correction", "written anew")
    page.click("#uncorrect")
    page.click("#correct-1")
    assert page.input_value("#correction") == shown[1]
    page.locator("#flags input").nth(1).check()
    page.click("#submit")
    sent(page)
    [row] = site.store.judgements(site.round_id)
    assert (row.choice, row.flags, row.correction) == ("all_bad", ("not my language",), None)
    assert {broken for broken in row.rules.values()} == {("no insults",)}


def test_practice_says_what_was_right(serve: Callable[..., Site], tmp_path: Path) -> None:
    from rlhf_pipeline.store.records import Gold

    store, round_id = make_round(tmp_path, 4, training_tasks=2)
    for task in store.tasks(round_id)[:2]:
        [right] = [r.id for r in task.responses if r.text.startswith("good")]
        store.set_gold(task.id, Gold("response", right, "It is **good**."))
    site = serve(store, round_id)
    page = site.page("Ann")
    page.wait_for_selector("#notice:has-text('Practice')")

    def judge_as(letter: str, key: str) -> str:
        place = next(i for i, text in enumerate(texts_of(page)) if text.startswith(letter))
        press(page, str(place + 1))
        page.wait_for_selector("#result[open] strong:has-text('good')")
        told: str = page.inner_text("#result h2")
        page.keyboard.press("2")  # does nothing while the result is shown
        page.keyboard.press(key)
        page.wait_for_selector("#result:not([open])", state="attached")
        return told

    assert judge_as("bad", "Enter") == "Not quite"
    assert judge_as("good", "Escape") == "That is right"
    page.wait_for_selector("#notice", state="hidden")
    sent(page)
    assert [row.purpose for row in store.judgements(round_id)] == ["training", "training"]


@pytest.mark.parametrize("form", [QUESTIONS, Form(kind="ranking", comment=True)], ids=["pair", "ranking"])
def test_without_the_script_a_form_is_asked_by_gradio(serve: Callable[..., Site], tmp_path: Path, form: Form) -> None:
    site = serve(*make_round(tmp_path, FOUR if form.kind == "ranking" else 2, form=form))
    page = site.page("Ann", before=lambda page: page.route("**/app/judge.js", lambda route: route.abort()))

    def says(text: str) -> None:
        page.wait_for_function(
            "text => document.querySelector('#plain-status textarea')?.value.includes(text)", arg=text
        )

    def fill(selector: str, text: str) -> None:
        page.fill(f"{selector} textarea, {selector} input[type=text]", text)

    says("by you")
    shown = [page.input_value(f"#plain-{letter} textarea") for letter in "ab"]
    fill("#plain-comment", "said plainly")
    if form.kind == "ranking":
        page.click("#submit")
        says("Not kept")
        fill("#plain-order", "c > a = b > d")
        page.click("#submit")
    else:
        page.click("#pick-b")
        says("Not kept")
        for letter in "ab":
            page.click(f"#plain-rating-{letter}-0 label:has-text('3')")
        page.click("#plain-rules-a label:has-text('no lies')")
        page.click("#pick-b")
    says("1 by you")
    [row] = site.store.judgements(site.round_id)
    texts = texts_by_id(site.store, site.round_id)
    assert row.comment == "said plainly"
    if form.kind == "ranking":
        ranked = ranking_of(site)
        assert [len(group) for group in ranked] == [1, 2, 1]
        assert set(ranked[1]) == set(shown)
    else:
        assert texts[row.response_id or 0] == shown[1]
        assert [set(row.rules[id_]) for id_ in row.shown_order] == [{"no lies"}, set()]


def test_the_form_of_a_task_is_that_under_which_it_was_given(serve: Callable[..., Site], tmp_path: Path) -> None:
    store, round_id = make_round(tmp_path, 8)
    site = serve(store, round_id)
    page: Any = site.page("Ann")
    page.wait_for_selector(READY)
    same = {"overlap": 1, "seed": 1, "source_digest": "d", "lease_seconds": 600}
    assert store.open_round("people", **same, form=Form(strength=True, tie=False)) == round_id
    for _ in range(4):  # those in hand
        press(page, "3")
    assert page.is_hidden("#pick-tie")
    press(page, "6")
    sent(page)
    rows = store.judgements(round_id)
    assert [(row.choice, row.strength) for row in rows] == [*[("tie", None)] * 4, ("response", 3)]
    assert len({row.form_digest for row in rows}) == 2
