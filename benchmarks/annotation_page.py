"""How long after a key press is the next task on the screen? In Chromium, on the page that annotators use.

    python benchmarks/annotation_page.py --out benchmarks/annotation_page.md

A round of real-sized texts (conversations, Markdown, code, formulas) is served and judged by keyboard. The time runs
from the browser's own time stamp of the key press to the moment after the frame that shows another task.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import sync_playwright

from annotation_ui.app import build, local_door
from rlhf_pipeline.pocket.grammar import demonstrations
from rlhf_pipeline.records import Message, Prompt
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import Form, NewResponse, NewTask

MARKDOWN = """Here is one way:

1. **Measure** the board twice, and mark it with a pencil.
2. Saw *slowly*; let the blade do the work.

```python
def length(boards: list[float], waste: float = 0.1) -> float:
    return sum(boards) * (1 + waste)
```

| wood | price | grain |
| ---- | ----- | ----- |
| oak  | 12    | close |
| pine | 4     | open  |

The waste grows as $w = \\frac{n - 1}{n} b$ with every cut.
"""
WATCH = """
window.waited = [];
addEventListener("keydown", (event) => {
  const before = document.body.dataset.task;
  requestAnimationFrame(() => {
    const after = new MessageChannel();
    after.port1.onmessage = () => {
      if (document.body.dataset.task !== before) window.waited.push(performance.now() - event.timeStamp);
    };
    after.port2.postMessage(0);
  });
}, true);
"""
PAUSE_MS = 300  # the page takes two presses within a quarter of a second for one
HEADER = """# From a key press to the next task

`python benchmarks/annotation_page.py --presses {presses} --out benchmarks/annotation_page.md`

Debian's Chromium without a window, server and browser on 2 CPU cores, {date}; milliseconds from the key press to the
frame with the next task.

| texts | presses | p50 ms | p95 ms | largest ms |
| --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Measure short and long texts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presses", type=int, default=100)
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    arguments = parser.parse_args()
    rows = []
    for name, repeats in (
        ("a few sentences", 0),
        ("Markdown with code, table and formula", 1),
        ("the same, 20 times", 20),
    ):
        with tempfile.TemporaryDirectory() as folder:
            waited = sorted(measure(Path(folder) / "judgements.db", arguments.presses, repeats))
        p50, p95 = (waited[int(share * (len(waited) - 1))] for share in (0.5, 0.95))
        rows.append(f"| {name} | {len(waited)} | {p50:.0f} | {p95:.0f} | {waited[-1]:.0f} |")
    table = HEADER.format(presses=arguments.presses, date=time.strftime("%d %B %Y", time.gmtime()))
    table += "\n".join(rows) + "\n"
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")
    print(table)


def measure(path: Path, presses: int, repeats: int) -> list[float]:
    """Milliseconds of each press on a round of such texts."""
    store = JudgementStore.open(path)
    round_id = store.open_round("page", overlap=1, seed=0, source_digest="page", lease_seconds=3600, form=Form())
    tasks = []
    for number, one in enumerate(demonstrations(presses + 5, seed=0)):
        texts = (f"{number}. {side} {one.response} {MARKDOWN * repeats}" for side in ("First:", "Second:"))
        prompt = Prompt((Message("user", f"{number}. {one.prompt.messages[-1].content}"),))
        tasks.append(NewTask(prompt, tuple(NewResponse(text, "eos") for text in texts)))
    store.add_tasks(round_id, tasks)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app: Any = build(store, round_id, local_door(port)).guard
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        return judge(f"http://127.0.0.1:{port}", presses)
    finally:
        server.should_exit = True
        thread.join(10)
        store.close()


def judge(url: str, presses: int) -> list[float]:
    """Sign in and judge by keyboard."""
    options = ["--disable-dev-shm-usage", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or "/usr/bin/chromium"
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=options)
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.add_init_script(WATCH)
        page.goto(url)
        page.fill("#name", "Ada")
        page.click("button")
        page.wait_for_selector("body[data-task]:not([data-task=''])")
        for press in range(presses):
            page.wait_for_timeout(PAUSE_MS)
            page.keyboard.press("12"[press % 2])
        page.wait_for_selector("body[data-waiting='0']")
        waited: list[float] = page.evaluate("window.waited")
        browser.close()
    assert len(waited) == presses, f"{len(waited)} of {presses} presses brought another task"
    return waited


if __name__ == "__main__":
    main()
