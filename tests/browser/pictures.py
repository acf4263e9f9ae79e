"""Make the pictures of the annotation app in ``docs``: ``python -m tests.browser.pictures``."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import sync_playwright

from annotation_ui.app import build, local_door
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Attribute, Form, NewResponse, NewTask
from tests.annotation_ui.planted_store import plant
from tests.browser.conftest import CHROMIUM
from tests.browser.rounds import READY

DOCS = Path(__file__).parent.parent.parent / "docs"
BASIL = (
    Message("user", "My basil keeps dying on the windowsill. What am I doing wrong?"),
    Message("assistant", "Basil likes warmth and light. How often do you water it?"),
    Message("user", "Every day, a full glass."),
)
ON_BASIL = (
    "That is the reason, I think: basil drowns sooner than it dries out. Let the top of the soil dry before you water "
    "again, and **empty the saucer** afterwards.\n\n1. Feel the soil with a finger, down to the first knuckle.\n2. "
    "Water only when it is dry there, in the morning.\n3. Turn the pot once a week, so that every side gets its light.",
    "Basil needs water, so watering it is good. You can water it every day or every other day, it depends on the "
    "plant. Some people use a spray bottle. Plants are green and they like the sun.",
    "| What you see | What it means |\n|---|---|\n| yellow, limp leaves | too much water |\n| dry, drooping leaves | "
    "too little |\n\nYours is the first: wait until the soil is dry.",
    "Too much water. Water when the top two centimetres are dry, about every third day.",
    "Have you tried a bigger pot? Roots that stand in water rot, so it also needs a hole and a saucer that is emptied.",
)
SKY = (Message("user", "چرا آسمان آبی است؟ کوتاه و با فرمول توضیح بده."),)
ON_SKY = (
    "چون هوا نور آبی را بیشتر از نور سرخ می‌پراکند. شدت پراکندگی به توان چهارم طول موج بستگی دارد:\n\n"
    "$$I \\propto \\frac{1}{\\lambda^4}$$\n\n- طول موج آبی: حدود ۴۵۰ نانومتر\n- طول موج سرخ: حدود ۷۰۰ نانومتر\n\n"
    "پس نور آبی نزدیک به **شش برابر** بیشتر پراکنده می‌شود.",
    "آسمان آبی است چون دریا آبی است و آسمان رنگ دریا را بازمی‌تاباند.",
)
QUESTIONS = Form(
    strength=True,
    rules=("Makes nothing up",),
    attributes=(Attribute("Helpful", "not at all", "very", 5), Attribute("Clear", "no", "yes", 5)),
    correction=True,
    comment=True,
    flags=("Personal data", "Not my language"),
)


def _serve(form: Form, prompt: tuple[Message, ...], texts: tuple[str, ...]) -> str:
    """The address of a round with one task that others have half done."""
    store = JudgementStore.open(Path(tempfile.mkdtemp()) / "judgements.db")
    round_id = store.open_round("people", overlap=60, seed=2, source_digest="d", lease_seconds=600, form=form)
    store.add_tasks(round_id, [NewTask(Prompt(prompt), tuple(NewResponse(text) for text in texts))])
    return _address(store, round_id)


def _address(store: JudgementStore, round_id: int) -> str:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    guard: Any = build(store, round_id, local_door(port)).guard
    server = uvicorn.Server(uvicorn.Config(guard, log_level="warning"))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return f"http://127.0.0.1:{port}/"


def _picture(browser: Any, name: str, url: str, person: str, keys: str, **options: Any) -> None:
    page = browser.new_context(viewport={"width": 1200, "height": 780}, **options).new_page()
    page.goto(url)
    page.fill("#name", person)
    page.click("button")
    page.wait_for_selector(READY)
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_timeout(300)  # colours fade in
    page.screenshot(path=DOCS / name)


def _results(browser: Any, name: str, url: str, tab: str, **options: Any) -> None:
    page = browser.new_context(viewport={"width": 1200, "height": 940}, **options).new_page()
    page.goto(url)
    page.fill("#name", "Ida Lee")
    page.click("button")
    page.goto(f"{url}admin/")
    page.wait_for_selector("#desk-overview .tile")
    page.get_by_role("tab", name=tab).click()
    page.wait_for_timeout(500)
    page.screenshot(path=DOCS / name, full_page=True)


def main() -> None:
    """Make all of them."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        _picture(browser, "annotate.png", _serve(Form(), BASIL, ON_BASIL[:2]), "Ann Lee", "")
        ranking = Form(kind="ranking", all_bad=True, flags=("Personal data",))
        url = _serve(ranking, BASIL, ON_BASIL)
        _picture(browser, "annotate-ranking.png", url, "Ann Lee", "2=41", color_scheme="dark")
        _picture(browser, "annotate-persian.png", _serve(Form(strength=True), SKY, ON_SKY), "مینا", "", locale="fa-IR")
        _picture(
            browser, "annotate-questions.png", _serve(QUESTIONS, BASIL, ON_BASIL[:2]), "Ann Lee", "3154", locale="en"
        )
        judged = _address(*plant(Path(tempfile.mkdtemp()) / "judgements.db", judgements=320))
        _results(browser, "results.png", judged, "Annotators")


if __name__ == "__main__":
    main()
