from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from annotation_ui.app import serve
from rlhf_pipeline.errors import StoreError, UsageError


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_computers_are_not_let_in(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accounts with passwords"):
        serve(str(tmp_path / "s.db"), 1, host=host)
    assert not (tmp_path / "s.db").exists()


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} cannot be used") as caught:
            serve(str(tmp_path / "s.db"), 1, port=port)
    assert "--port" in str(caught.value)


def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="its folder exists"):
        serve(str(tmp_path / "no" / "s.db"), 1, port=0)


CALLS = """
import socket, sys, time
asked = []
connect, resolve = socket.socket.connect, socket.getaddrinfo
def watch(self, address):
    if self.family != socket.AF_UNIX:
        asked.append(address)
    return connect(self, address)
socket.socket.connect = watch
socket.getaddrinfo = lambda host, *a, **k: (asked.append(host), resolve(host, *a, **k))[1]
from annotation_ui.app import build
from rlhf_pipeline.store import JudgementStore
store = JudgementStore.open(sys.argv[1])
build(store, store.open_round("r", overlap=1, seed=0, source_digest="", lease_seconds=60), port=7860)
time.sleep(1)  # Gradio's telemetry runs in threads of its own
print(asked)
"""


def test_building_the_app_calls_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CALLS, str(tmp_path / "s.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_logic_does_not_import_gradio() -> None:
    code = "import sys, annotation_ui.session, annotation_ui.guard\nassert 'gradio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
