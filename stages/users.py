"""The people of a run: ``rlhf users`` lists, invites, blocks them, and hands out what they sign in with.

Reads and writes the run's judgement store. Who may run this may change the store's file, and so is asked for no right.

    rlhf users invite RUN --role admin
    rlhf users list RUN
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_pipeline.errors import UsageError

if TYPE_CHECKING:
    from rlhf_pipeline.store import JudgementStore
    from rlhf_pipeline.store.people import People, Person

app = typer.Typer(help="List, invite and block the people who judge, and hand out what they sign in with.")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name under which the person signs in.")]
_LOCAL = "http://127.0.0.1:7860"


@app.command("list")
def list_people(
    folder: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """Show everybody: role, state, judgements, and when they were last seen."""
    from rlhf_pipeline.store.people import ROLES

    with _store(folder) as store:
        people, made = store.people.list(), _judgements(store)
    if as_json:
        rows = [
            {
                "name": p.name,
                "role": p.role,
                "state": p.state,
                "password": p.has_password,
                "judgements": made[p.name],
                "last_seen": _time(p.last_seen_at) if p.last_seen_at else None,
            }
            for p in people
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not people:
        print(f"nobody yet: rlhf users invite {folder}")
        return
    width = max(len(p.name) for p in people)
    for p in people:
        notes = [p.state] if p.state != "active" else []
        notes += ["no password"] if not p.has_password and p.role in ROLES else []
        notes += [f"seen {_time(p.last_seen_at)}"] if p.last_seen_at else []
        print(f"{p.name:{width}}  {p.role:9}  {made[p.name]:>6,} judged  {', '.join(notes)}".rstrip())


@app.command()
def invite(
    folder: RunFolder,
    role: Annotated[
        str | None,
        typer.Option(help="annotator judges (also where nothing is said), reader sees results, admin does everything."),
    ] = None,
    known: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="NAME",
            help="Somebody who is there already: who judged under a name alone, or has forgotten the password. They "
            "keep their name, their role and what they judged.",
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=90, help="Days for which the link is good.")] = 7,
    url: Annotated[str, typer.Option(help="Where the app is reached.")] = _LOCAL,
) -> None:
    """Print a link with which one person makes an account, once."""
    from rlhf_pipeline.store.people import site_origin

    site = site_origin(url, where="--url")
    with _store(folder) as store:
        if known is None:
            whom = f"one {role or 'annotator'}"
            token = store.people.invite(role or "annotator", days=days)
        elif role is not None:
            raise UsageError(
                f"{known} keeps their role",
                where="--role",
                advice=f"leave it out; rlhf users role {folder} NAME {role}    changes it",
            )
        else:
            person = _person(store.people, known)
            whom = person.name
            token = store.people.invite_known(person.id, days=days)
    print(f"{site}/invite/{token}")
    print(f"good for {whom}, for {days} {'day' if days == 1 else 'days'}; it is shown only now", file=sys.stderr)


@app.command()
def role(
    folder: RunFolder,
    name: Name,
    new_role: Annotated[str, typer.Argument(metavar="ROLE", help="admin, annotator or reader.")],
) -> None:
    """Change what a person may do; they have to sign in again."""
    with _store(folder) as store:
        store.people.set_role(_person(store.people, name).id, new_role)
    print(f"{name} is {new_role}")


@app.command()
def block(folder: RunFolder, name: Name) -> None:
    """Let a person in no more; what they judged stays."""
    with _store(folder) as store:
        store.people.block(_person(store.people, name).id)
    print(f"{name} is blocked, and signed out everywhere")


@app.command()
def unblock(folder: RunFolder, name: Name) -> None:
    """Let a blocked person in again."""
    with _store(folder) as store:
        store.people.unblock(_person(store.people, name).id)
    print(f"{name} may sign in again")


@app.command()
def password(folder: RunFolder, name: Name) -> None:
    """Give a person a new password, asked for or read from standard input, and sign them out everywhere."""
    with _store(folder) as store:
        person = _person(store.people, name)
        if sys.stdin.isatty():
            given = typer.prompt("new password", hide_input=True, confirmation_prompt=True)
        else:
            given = sys.stdin.readline().rstrip("\r\n")
        store.people.set_password(person.id, given)
    print(f"{name} has a new password")


@app.command()
def sessions(folder: RunFolder, name: Name) -> None:
    """Show where a person is signed in, and their API tokens."""
    with _store(folder) as store:
        person = _person(store.people, name)
        found, tokens = store.people.sessions(person.id), store.people.api_tokens(person.id)
    for s in found:
        times = f"since {_time(s.created_at)}  seen {_time(s.last_seen_at)}"
        print(f"session {s.id[:12]}  {times}  {s.ip}  {s.agent}".rstrip())
    for t in tokens:
        print(f"token   {t.id:<12}  since {_time(t.created_at)}  {t.scope}")
    if not found and not tokens:
        print(f"{name} is signed in nowhere and has no API token")


@app.command()
def revoke(
    folder: RunFolder,
    name: Name,
    session: Annotated[str | None, typer.Option(help="Only this session, as `rlhf users sessions` names it.")] = None,
    token: Annotated[int | None, typer.Option(help="Only this API token, by its number.")] = None,
) -> None:
    """Sign a person out everywhere and end their API tokens, or end only what is named."""
    with _store(folder) as store:
        person = _person(store.people, name)
        chosen_sessions = [s.id for s in store.people.sessions(person.id) if session and s.id.startswith(session)]
        chosen_tokens = [t.id for t in store.people.api_tokens(person.id) if t.id == token]
        if (session and len(chosen_sessions) != 1) or (token is not None and not chosen_tokens):
            raise UsageError(
                f"{name} has no such session or token, or several begin like that",
                advice=f"rlhf users sessions {folder} {json.dumps(name, ensure_ascii=False)}    lists them",
            )
        if session is None and token is None:
            ended = store.people.revoke_sessions(person.id)
            chosen_tokens = [t.id for t in store.people.api_tokens(person.id)]
        else:
            ended = sum(store.people.revoke_session(id_) for id_ in chosen_sessions)
        tokens_ended = sum(store.people.revoke_api_token(id_) for id_ in chosen_tokens)
    print(f"ended: {ended} sessions, {tokens_ended} API tokens")


@app.command()
def token(
    folder: RunFolder,
    name: Name,
    scope: Annotated[
        str | None, typer.Option(help="read (results), judge (own tasks) or admin; an annotator's is judge, else read.")
    ] = None,
) -> None:
    """Print an API token with which a program acts for a person."""
    with _store(folder) as store:
        owner = _person(store.people, name)
        scope = scope or ("judge" if owner.role == "annotator" else "read")
        made = store.people.make_api_token(owner.id, scope)
    print(made)
    print(f"for {name}, scope {scope}; it is shown only now", file=sys.stderr)


@contextmanager
def _store(folder: Path) -> Iterator[JudgementStore]:
    """The judgement store of a run."""
    if not (folder / "config.yaml").is_file():
        raise UsageError(
            "not a run folder: it has no config.yaml", where=str(folder), advice="rlhf run CONFIG makes one"
        )
    from rlhf_pipeline.store import JudgementStore
    from stages import collect, settings

    store = JudgementStore.open(collect.store_url(settings.load_to_look(folder).collect, folder))
    try:
        yield store
    finally:
        store.close()


def _person(people: People, name: str) -> Person:
    found = people.find(name)
    if found is None:
        near = ", ".join(p.name for p in people.list()[:10])
        raise UsageError(
            f"there is nobody called {name!r}", advice=f"There are: {near}" if near else "Invite somebody."
        )
    return found


def _judgements(store: JudgementStore) -> Counter[str]:
    made: Counter[str] = Counter()
    for one in store.rounds():
        made.update(store.progress(one.id).annotators)
    return made


def _time(at: Any) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
