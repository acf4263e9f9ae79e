"""The server is killed in mid-session: nothing that it had confirmed is lost, nothing that it had not is doubled."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.browser.rounds import READY, make_round, press, sent, task_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SERVE = "import sys; from annotation_ui.app import serve; serve(sys.argv[1], int(sys.argv[2]), port=int(sys.argv[3]))"


def start(path: Path, round_id: int, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SERVE, str(path), str(round_id), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline().startswith("judge at")
    return server


def test_a_killed_server_loses_and_doubles_nothing(browser: Any, tmp_path: Path) -> None:
    store, round_id = make_round(tmp_path, 10)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(tmp_path / "judgements.db", round_id, port)
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#name", "Ann")
        page.click("button")
        page.wait_for_selector(READY)
        judged = []
        for _ in range(2):
            judged.append(task_of(page))
            press(page, "1")
        sent(page)
        server.kill()
        server.wait()
        assert len(store.judgements(round_id)) == 2
        for _ in range(3):
            judged.append(task_of(page))
            press(page, "2")
        page.wait_for_selector("text=3 waiting to be sent (offline)")
        server = start(tmp_path / "judgements.db", round_id, port)
        page.wait_for_selector("body[data-waiting='0']", timeout=60_000)
        page.wait_for_selector(READY)  # still signed in, and at the next pair
        rows = store.judgements(round_id)
        assert [str(row.assignment_id) for row in rows] == judged
        assert {row.revision for row in rows} == {1}
    finally:
        context.close()
        server.kill()
        store.close()
