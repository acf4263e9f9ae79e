"""``rlhf users``: every subcommand on a run's store, and what it says when something is wrong."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from rlhf_pipeline.errors import LoginRefused
from rlhf_pipeline.store import JudgementStore, passwords
from rlhf_pipeline.store.people import User
from tests.command_line import ROOT, Result, rlhf, write_config

GOOD = "correct horse battery"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder in which nothing was made yet."""
    monkeypatch.setattr(passwords, "hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(tmp_path).rename(folder / "config.yaml")
    return folder


def users(run: Path, command: str, *arguments: str) -> Result:
    return rlhf("users", command, str(run), *arguments)


def store_of(run: Path) -> JudgementStore:
    return JudgementStore.open(run / "judgements.db")


def add(run: Path, name: str, role: str = "annotator") -> User:
    """A person with an account, made by an invitation of the command line."""
    token = users(run, "invite", "--role", role).out.strip().rsplit("/", 1)[1]
    store = store_of(run)
    made = store.people.accept_invite(token, name, GOOD)
    store.close()
    return made


def test_an_invitation_is_a_link_that_makes_an_account(run: Path) -> None:
    assert "nobody yet" in users(run, "list").out
    shown = users(run, "invite", "--role", "admin", "--days", "2", "--url", "https://judge.example/")
    assert re.fullmatch(r"https://judge\.example/invite/[\w-]{43}\n", shown.out)
    assert "one admin, for 2 days" in shown.err
    assert users(run, "invite").out.startswith("http://127.0.0.1:7860/invite/")
    assert add(run, "Root", "admin").role == "admin"


def test_a_link_is_that_of_a_site(run: Path) -> None:
    for url in ("javascript:alert(1)", "judge.example", "https://judge.example/path", "https://a:x/"):
        refused = users(run, "invite", "--url", url)
        assert (refused.code, refused.out) == (2, "")
        assert "is not the address of a site" in refused.err
    assert not (run / "judgements.db").exists()


def test_who_is_known_by_name_alone_is_sent_a_link(run: Path) -> None:
    store = store_of(run)
    bea = store.user("Bea")
    shown = users(run, "invite", "--for", "bea")
    assert "good for Bea, for 7 days" in shown.err
    assert store.people.accept_invite(shown.out.strip().rsplit("/", 1)[1], "", GOOD) == User(bea, "Bea", "annotator")
    assert "nobody called 'Eve'" in users(run, "invite", "--for", "Eve").err
    assert "Bea keeps their role" in users(run, "invite", "--for", "Bea", "--role", "admin").err
    store.close()


def test_everybody_is_listed(run: Path) -> None:
    add(run, "Root", "admin")
    store = store_of(run)
    store.user("محمد")
    store.people.start_session(store.user("Bob"))
    store.close()
    users(run, "block", "bob")
    lines = users(run, "list").out.splitlines()
    assert [line.split()[:2] for line in lines] == [["Bob", "annotator"], ["Root", "admin"], ["محمد", "annotator"]]
    assert re.search(r"0 judged  blocked, no password, seen 2\d{3}-\d\d-\d\d \d\d:\d\d UTC$", lines[0])
    assert lines[1].endswith("0 judged")
    rows = json.loads(users(run, "list", "--json").out)
    assert [(row["name"], row["state"], row["password"]) for row in rows] == [
        ("Bob", "blocked", False),
        ("Root", "active", True),
        ("محمد", "active", False),
    ]


def test_roles_and_blocking(run: Path) -> None:
    add(run, "Ann")
    assert users(run, "role", "ann", "reader").code == 0
    store = store_of(run)
    assert store.people.check_password("Ann", GOOD).role == "reader"
    users(run, "block", "Ann")
    with pytest.raises(LoginRefused):
        store.people.check_password("Ann", GOOD)
    users(run, "unblock", "Ann")
    assert store.people.check_password("Ann", GOOD).role == "reader"
    assert [e.verb for e in store.events(limit=20) if e.user is None and e.object == "user"] == [
        "unblock",
        "block",
        "set role",
        "invite",
    ]
    store.close()


def test_a_new_password_is_read_from_standard_input(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(run, "Ann")
    monkeypatch.setattr(sys, "stdin", io.StringIO("another good one\n"))
    shown = users(run, "password", "Ann")
    assert shown.code == 0
    assert "another good one" not in shown.out + shown.err
    store = store_of(run)
    assert store.people.check_password("Ann", "another good one").name == "Ann"
    store.close()
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    refused = users(run, "password", "Ann")
    assert refused.code == 1
    assert "5 characters; wanted: 10 to 200" in refused.err


def test_sessions_and_tokens_are_shown_and_revoked(run: Path) -> None:
    ann = add(run, "Ann")
    store = store_of(run)
    first = store.people.start_session(ann.id, ip="10.0.0.1", agent="Browser 1")
    second = store.people.start_session(ann.id)
    made = users(run, "token", "Ann", "--scope", "judge")
    assert store.people.of_api_token(made.out.strip()) == User(ann.id, "Ann", "annotator", None, "judge")
    shown = users(run, "sessions", "Ann").out
    [line] = [line for line in shown.splitlines() if "10.0.0.1" in line]
    assert line.startswith("session ")
    assert "judge" in shown
    assert not any(secret in shown for secret in (first, second, made.out.strip()))
    assert "ended: 1 sessions, 0 API tokens" in users(run, "revoke", "Ann", "--session", line.split()[1]).out
    assert store.people.of_session(first) is None
    assert store.people.of_session(second) is not None
    assert "ended: 0 sessions, 1 API tokens" in users(run, "revoke", "Ann", "--token", "1").out
    assert store.people.of_api_token(made.out.strip()) is None
    assert "scope judge" in users(run, "token", "Ann").err
    assert "ended: 1 sessions, 1 API tokens" in users(run, "revoke", "Ann").out
    assert "signed in nowhere" in users(run, "sessions", "Ann").out
    store.close()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("block", "Eve"), 2, "nobody called 'Eve'"),
        (("role", "Root", "boss"), 1, "Roles: admin, annotator, reader"),
        (("invite", "--role", "boss"), 1, "no role 'boss'"),
        (("block", "Root"), 1, "Root is the last admin"),
        (("token", "Root", "--scope", "all"), 1, "Scopes: judge, read, admin"),
        (("token", "Ann", "--scope", "read"), 1, "the role admin or reader; theirs may have judge"),
        (("revoke", "Root", "--session", "abc"), 2, "rlhf users sessions"),
        (("revoke", "Root", "--token", "9"), 2, "no such session or token"),
    ],
)
def test_mistakes_say_what_to_do(run: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    add(run, "Root", "admin")
    add(run, "Ann")
    shown = users(run, *arguments)
    assert (shown.code, said in shown.err) == (code, True), shown.err


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    shown = users(tmp_path, "list")
    assert shown.code == 2
    assert "not a run folder" in shown.err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom stages.__main__ import main\nsys.argv = ['rlhf', 'users', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'sqlalchemy', 'argon2', 'torch', 'alembic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
