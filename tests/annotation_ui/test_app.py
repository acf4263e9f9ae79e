from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from annotation_ui.app import _door, build, local_door, serve
from annotation_ui.guard import Door
from rlhf_pipeline.errors import StoreError, UsageError
from rlhf_pipeline.store import JudgementStore


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_computers_are_let_in_only_where_people_have_passwords(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nobody has an account") as caught:
        serve(str(tmp_path / "s.db"), 1, host=host, port=0)
    assert "rlhf users invite" in str(caught.value)
    with pytest.raises(UsageError, match="nobody has an account"):
        serve(str(tmp_path / "s.db"), 1, port=0, public_url="https://judge.example.org")


@pytest.mark.parametrize("url", ["judge.example.org", "ftp://x", "https://", "https://x/path", "https://x?q"])
def test_a_public_address_is_that_of_a_site(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="address of a site"):
        serve(str(tmp_path / "s.db"), 1, public_url=url)


def test_doors(store: JudgementStore) -> None:
    """Which Host values are answered, and what the browser is believed to see."""
    here = _door(store, "127.0.0.1", 7860, None)
    assert (here.accounts, here.origin) == (False, None)
    assert here.hosts == {"127.0.0.1:7860", "localhost:7860", "[::1]:7860"}
    store.people.set_password(store.user("Ada", "admin"), "long enough words")
    assert _door(store, "127.0.0.1", 7860, None).accounts
    assert _door(store, "0.0.0.0", 7860, None) == Door(None, None, True)
    assert _door(store, "192.168.1.5", 80, None).hosts == {"192.168.1.5:80", "[192.168.1.5]:80"}
    public = _door(store, "127.0.0.1", 7860, "https://judge.example.org")
    assert (public.origin, public.accounts) == ("https://judge.example.org", True)
    assert public.hosts is not None
    assert "judge.example.org" in public.hosts


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} cannot be used") as caught:
            serve(str(tmp_path / "s.db"), 1, port=port)
    assert "--port" in str(caught.value)


@pytest.mark.parametrize("host", ["203.0.113.9", "300.1.1.1"])
def test_a_host_that_is_not_this_computer(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match=f"{host} is no address of this computer") as caught:
        serve(str(tmp_path / "s.db"), 1, host=host, port=0)
    assert "--host" in str(caught.value)


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
from annotation_ui.app import build, local_door
from rlhf_pipeline.store import JudgementStore
store = JudgementStore.open(sys.argv[1])
build(store, store.open_round("r", overlap=1, seed=0, source_digest="", lease_seconds=60), local_door(7860))
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


def test_gradio_does_not_look_for_queued_events_all_the_time(tmp_path: Path) -> None:
    """A thousand times a second, if it is let: no event here is queued."""
    store = JudgementStore.open(tmp_path / "s.db")
    app = build(store, store.open_round("r", overlap=1, seed=0, source_digest="d", lease_seconds=60), local_door(1))
    pages = [route.app.get_blocks() for route in app.routes if hasattr(getattr(route, "app", None), "get_blocks")]
    assert [page._queue.sleep_when_free for page in pages] == [1.0, 1.0]
    store.close()
