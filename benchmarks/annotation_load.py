"""Does the annotation app hold what it has acknowledged? Many people at once, and a server that is killed.

    python benchmarks/annotation_load.py --out benchmarks/annotation_load.md

Each person signs in over HTTP, thinks, answers through the JSON API that the page uses, sometimes sends an answer
twice, sometimes walks away until the lease has run out. The same on SQLite and on PostgreSQL (its programs must be
installed), first undisturbed, then with ``kill -9`` of the server. What was acknowledged is then looked for in the
store: exactly once, by distinct people, counts and events in order. Times are the server's own (``Server-Timing``), and
what a client waits for an answer while all clients and the server share the processor.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from rlhf_pipeline.pocket.grammar import demonstrations
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.records import NewResponse, NewTask

ROOT = Path(__file__).resolve().parent.parent
OVERLAP, LEASE_S, RESENT, WALKS_AWAY = 3, 10, 0.1, 0.02
QUANTILES = 0.5, 0.95, 0.99
HEADER = """# The annotation app under load

`python benchmarks/annotation_load.py --people {people} --seconds {seconds} --out benchmarks/annotation_load.md`

{people} people, {thinking} s of thinking each, overlap 3, one answer in ten sent twice, one in fifty after the lease
had run out; {seconds} s; server, database and clients share {cores} CPU cores; {date}. Milliseconds from a judgement to
its acknowledgement, which comes with the next tasks: in the server, and as a client waits for it. "Too many": tasks
with more judgements than their overlap, none of them late.

| store | kill -9 | acknowledged | lost | doubled | late, kept | too many | server p50, 95, 99 | client p50, 95, 99 |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass
class Seen:
    """What the people of one run saw."""

    acknowledged: list[str] = field(default_factory=list)
    waited_ms: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Run the four settings and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--thinking", type=float, default=4.0, help="mean seconds between two answers of a person")
    parser.add_argument("--kills", type=int, default=3, help="of the server, in the disturbed runs")
    parser.add_argument("--out", type=Path, help="where the table goes; the terminal when left out")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kills in (0, arguments.kills):
            rows.append(measure("SQLite", str(folder / f"{kills}.db"), kills, arguments))
            with postgresql(folder / f"postgresql{kills}") as url:
                rows.append(measure("PostgreSQL", url, kills, arguments))
    header = HEADER.format(
        people=arguments.people,
        seconds=f"{arguments.seconds:g}",
        thinking=f"{arguments.thinking:g}",
        cores=os.cpu_count(),
        date=time.strftime("%d %B %Y", time.gmtime()),
    )
    table = header + "\n".join(rows) + "\n"
    if arguments.out:
        arguments.out.write_text(table, encoding="utf-8")
    print(table)


def measure(name: str, url: str, kills: int, arguments: argparse.Namespace) -> str:
    """One run; its row of the table."""
    store = JudgementStore.open(url)
    try:
        enough = int(arguments.people * arguments.seconds / max(arguments.thinking, 0.1) / OVERLAP) + arguments.people
        round_id = make_round(store, enough)
        seen = asyncio.run(judge_all(url, round_id, kills, arguments))
        return row(name, kills, seen, store, round_id)
    finally:
        store.close()


def make_round(store: JudgementStore, number: int) -> int:
    """A round of so many pairs of readable responses."""
    round_id = store.open_round("load", overlap=OVERLAP, seed=0, source_digest="load", lease_seconds=LEASE_S)
    tasks: dict[str, NewTask] = {}
    given = demonstrations(2 * number, seed=0)
    for one, other in zip(given[::2], given[1::2], strict=True):
        if one.response != other.response:
            task = NewTask(one.prompt, (NewResponse(one.response, "eos"), NewResponse(other.response, "eos")))
            tasks[task.digest] = task
    store.add_tasks(round_id, list(tasks.values()))
    return round_id


async def judge_all(url: str, round_id: int, kills: int, arguments: argparse.Namespace) -> Seen:
    """Everybody judges until the time is over, while the server is killed now and then."""
    server = Server(url, round_id)
    seen = Seen()
    try:
        await server.ready()
        people = [Person(number, server.address, seen, arguments.thinking) for number in range(arguments.people)]
        for person in people:  # one after the other, before the clock starts
            await person.sign_in()
        end = time.monotonic() + arguments.seconds
        at_work = [asyncio.create_task(person.judge(end)) for person in people]
        for _ in range(kills):
            await asyncio.sleep(arguments.seconds / (kills + 1))
            server.kill()
            server.start()
        await asyncio.gather(*at_work)
    finally:
        server.kill()
    return seen


class Server:
    """The app in a process of its own."""

    def __init__(self, url: str, round_id: int) -> None:
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        program = "import sys; from annotation_ui.app import serve; url, round_id, port = sys.argv[1:]; "
        program += "serve(url, int(round_id), port=int(port))"
        self.command = [sys.executable, "-c", program, url, str(round_id), str(self.port)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.DEVNULL)

    async def ready(self) -> None:
        async with aiohttp.ClientSession() as client:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get(f"{self.address}/login"):
                        return
                assert self.process.poll() is None, "the server ended by itself"
                await asyncio.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Person:
    """Judges as the page does: an answer is sent until it is acknowledged, with the same token."""

    def __init__(self, number: int, address: str, seen: Seen, thinking: float) -> None:
        self.name, self.seen, self.thinking = f"Person {number}", seen, thinking
        self.lot, self.failures = random.Random(number), 0
        self.client = aiohttp.ClientSession(
            address,
            headers={"origin": address},
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # the host is a number
            timeout=aiohttp.ClientTimeout(20),
        )

    async def sign_in(self) -> None:
        await self.post("/login", data={"name": self.name}, allow_redirects=False)

    async def judge(self, end: float) -> None:
        """From the first task to the end of the time."""
        async with self.client:
            await asyncio.sleep(self.lot.uniform(0, self.thinking))  # not everybody at the same moment
            tasks = (await self.post("/api/v1/tasks/next", json={"n": 4}))["tasks"]
            while tasks and time.monotonic() < end:
                away = self.lot.random() < WALKS_AWAY
                await asyncio.sleep(1.5 * LEASE_S if away else self.lot.expovariate(1 / self.thinking))
                tasks = await self.answer(tasks[0]["assignment"])

    async def answer(self, assignment: int) -> list[dict]:
        """Send one judgement until it is acknowledged; the next tasks come with it."""
        token = secrets.token_hex(16)
        choice = (
            {"choice": "response", "place": self.lot.randrange(2)} if self.lot.random() > 0.1 else {"choice": "tie"}
        )
        body = {"client_token": token, "assignment": assignment, "keys_used": True, **choice}
        started = time.monotonic()
        failures = self.failures
        given = await self.post("/api/v1/judgements", json=body)
        if "error" in given:
            self.seen.refused[given["error"]] += 1
            return (await self.post("/api/v1/tasks/next", json={"n": 4}))["tasks"]
        if self.failures == failures:
            self.seen.waited_ms.append(1000 * (time.monotonic() - started))
            self.seen.server_ms.append(given["server_ms"])
        self.seen.acknowledged.append(token)
        if self.lot.random() < RESENT:
            again = await self.post("/api/v1/judgements", json=body)
            assert again["known"], "a token that was sent twice was not recognised"
        return given["tasks"]

    async def post(self, path: str, **content: Any) -> dict[str, Any]:
        """What the server says, once there is one, and the milliseconds that it took."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self.client.post(path, **content) as given:
                    if given.status not in (429, 503):
                        said = await given.json() if given.content_type == "application/json" else {}
                        return {**said, "server_ms": float(given.headers["server-timing"].partition("dur=")[2])}
            self.failures += 1
            await asyncio.sleep(1)


def row(name: str, kills: int, seen: Seen, store: JudgementStore, round_id: int) -> str:
    """What the store has of what was acknowledged."""
    wrong = store.check()
    assert not wrong, wrong
    assert not seen.refused, seen.refused
    stored = store.judgements(round_id, all_revisions=True)
    times = Counter(one.client_token for one in stored)
    lost = sum(times[token] == 0 for token in seen.acknowledged)
    doubled = sum(count > 1 for count in times.values())
    late = [one for one in stored if one.late]
    by_task: dict[int, list[int]] = {}
    for one in stored:
        by_task.setdefault(one.task_id, []).append(one.user_id)
    assert all(len(set(people)) == len(people) for people in by_task.values()), "a task was given twice to one person"
    late_tasks = {one.task_id for one in late}
    over = sum(len(people) > OVERLAP for task, people in by_task.items() if task not in late_tasks)
    cells: list[object] = [name, kills, f"{len(seen.acknowledged):,}", lost, doubled, len(late), over]
    for waited in (sorted(seen.server_ms), sorted(seen.waited_ms)):
        cells.append(", ".join(f"{waited[int(p * (len(waited) - 1))]:.0f}" for p in QUANTILES))
    return f"| {' | '.join(str(cell) for cell in cells)} |"


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A fresh server for the time of a run."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    binaries = found[-1].parent if found else Path(shutil.which("initdb") or sys.exit("initdb is missing")).parent
    folder.mkdir()
    owner = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if owner:
        shutil.chown(folder, owner)
        folder.parent.chmod(0o755)

    def call(program: str, *arguments: str) -> None:
        command = [str(binaries / program), *arguments]
        subprocess.run(command, check=True, cwd=folder, user=owner, stdout=subprocess.DEVNULL)

    data = str(folder / "data")
    call("initdb", "-D", data, "-U", "rlhf", "-A", "trust", "-E", "UTF8")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
    call("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql+psycopg://rlhf@/postgres?host={folder}"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


if __name__ == "__main__":
    main()
