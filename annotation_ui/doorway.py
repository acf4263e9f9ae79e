"""The pages before judging: signing in, accepting an invitation, changing the password, signing out."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from annotation_ui import languages
from annotation_ui.api import set_language
from annotation_ui.guard import COOKIE, Door, Guard, read_cookies
from rlhf_pipeline.errors import LoginRefused, StoreError
from rlhf_pipeline.store import JudgementStore
from rlhf_pipeline.store.passwords import LONGEST, SHORTEST
from rlhf_pipeline.store.people import ROLES, SESSION_SECONDS, Invite, User, clean_name

_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
    (Path(__file__).parent / "static" / "page.html").read_text(encoding="utf-8")
)


class Doorway:
    """The pages for whoever is not judging yet."""

    def __init__(self, store: JudgementStore, guard: Callable[[], Guard], door: Door) -> None:
        self._store, self._guard, self._door = store, guard, door

    def add_to(self, app: FastAPI) -> None:
        """Add the pages to the app."""
        pages: list[tuple[str, str, Any]] = [
            ("/login", "GET", self.show_login),
            ("/login", "POST", self.login),
            ("/logout", "POST", self.logout),
            ("/invite/{token}", "GET", self.show_invite),
            ("/invite/{token}", "POST", self.accept),
            ("/password", "GET", self.show_password),
            ("/password", "POST", self.change_password),
        ]
        for path, method, page in pages:
            app.add_api_route(path, page, methods=[method], include_in_schema=False, response_model=None)

    # Signing in: on this computer a name is enough, unless there are accounts

    async def show_login(self, request: Request) -> Response:
        """The page that asks who is there."""
        return self._login_page(request)

    def _login_page(self, request: Request, error: str = "", name: str = "", status: int = 200) -> Response:
        t = _words(request)
        accounts = self._accounts()
        fields = [_field("name", t["login.name"], value=name, complete="username" if accounts else "name")]
        if accounts:
            fields.append(_field("password", t["login.password"], type="password", complete="current-password"))
        return _page(
            request,
            status,
            title=t["title.page"],
            lead=t["login.lead"],
            fields=fields,
            action="/login",
            error=error,
            submit=t["login.sign_in" if accounts else "login.start"],
            note=t["login.no_account" if accounts else "login.name_is_kept"],
        )

    async def login(self, request: Request) -> Response:
        """Check who is there and start a session."""
        form = await _form(request)
        name = form.get("name", "")
        t = _words(request)
        try:
            return await self._start_session(request, await run_in_threadpool(self._who, request, form))
        except LoginRefused as error:
            return self._login_page(request, _refused(t, error), name[:100], 429 if error.wait_seconds else 403)
        except StoreError as error:
            return self._login_page(request, _name_refused(t, name, error), name[:100], 400)

    def _who(self, request: Request, form: Mapping[str, str]) -> int:
        name = form.get("name", "")
        if not self._accounts():
            known = self._store.people.find(name)  # who was made admin on the command line may come in by name too
            return known.id if known is not None and known.role in ROLES else self._store.user(name)
        return self._store.people.check_password(name, form.get("password", ""), ip=_address(request)).id

    def _accounts(self) -> bool:
        """Whether passwords are asked; from the first account on, also if it is made while the app runs."""
        if not self._door.accounts:
            self._door.accounts = has_accounts(self._store)
        return self._door.accounts

    async def _start_session(self, request: Request, user_id: int) -> Response:
        agent = request.headers.get("user-agent", "")[:200]
        token = await run_in_threadpool(
            lambda: self._store.people.start_session(user_id, ip=_address(request), agent=agent)
        )
        answer = RedirectResponse("/", status_code=303)
        origin = self._guard().origin(request.scope, request.headers.get("host", ""))
        answer.set_cookie(
            COOKIE,
            token,
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="lax",
            path="/",
            secure=origin.startswith("https://"),
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """End the session on the server and in the browser."""
        token = read_cookies(request.headers.get("cookie", "")).get(COOKIE)
        if token:
            await run_in_threadpool(self._store.people.end_session, token)
            self._guard().forget(token)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    # Invitations

    async def show_invite(self, request: Request, token: str) -> Response:
        """The page that makes an account of a one-time link."""
        found = await run_in_threadpool(self._store.people.invited, token)
        return self._no_invite(request) if found is None else self._invite_page(request, token, found)

    def _no_invite(self, request: Request) -> Response:
        t = _words(request)
        return _page(request, 404, title=t["invite.new_title"], error=t["invite.unusable"])

    def _invite_page(self, request: Request, token: str, found: Invite, error: str = "", name: str = "") -> Response:
        """Who is new chooses a name and a password, who is known already a password."""
        t = _words(request)
        kind = "known" if found.name else "new"
        who = [] if found.name else [_field("name", t["login.name"], value=name, complete="username")]
        rule = _fill(t["password.rule"])
        password = _field("password", t["login.password"], type="password", complete="new-password", hint=rule)
        return _page(
            request,
            400 if error else 200,
            title=t[f"invite.{kind}_title"],
            lead=t[f"invite.{kind}_lead"].replace("{name}", found.name or ""),
            fields=[*who, password],
            action=f"/invite/{urllib.parse.quote(token)}",
            error=error,
            submit=t[f"invite.{kind}_submit"],
        )

    async def accept(self, request: Request, token: str) -> Response:
        """Make the account and sign in with it."""
        form = await _form(request)
        name, password = form.get("name", ""), form.get("password", "")
        t = _words(request)
        found = await run_in_threadpool(self._store.people.invited, token)
        if found is None:
            return self._no_invite(request)
        if not SHORTEST <= len(password) <= LONGEST:
            return self._invite_page(request, token, found, _fill(t["password.short"]), name[:100])
        try:
            user = await run_in_threadpool(self._store.people.accept_invite, token, name, password)
        except LoginRefused:
            return self._no_invite(request)
        except StoreError as error:
            refused = error.what if found.name else _name_refused(t, name, error)
            return self._invite_page(request, token, found, refused, name[:100])
        self._door.accounts = True
        return await self._start_session(request, user.id)

    # One's own password

    async def show_password(self, request: Request) -> Response:
        """The page that changes one's own password."""
        return self._password_page(request)

    def _password_page(self, request: Request, error: str = "", *, done: bool = False) -> Response:
        t = _words(request)
        rule = _fill(t["password.rule"])
        old = _field("old", t["password.old"], type="password", complete="current-password")
        new = _field("new", t["password.new"], type="password", complete="new-password", hint=rule)
        return _page(
            request,
            400 if error else 200,
            title=t["password.title"],
            fields=[] if done else [old, new],
            action="/password",
            error=error,
            done=t["password.changed"] if done else "",
            submit=t["password.submit"],
        )

    async def change_password(self, request: Request) -> Response:
        """Change it, and end every other session of this person."""
        form = await _form(request)
        user: User = request.state.user
        old, new = form.get("old", ""), form.get("new", "")
        t = _words(request)
        if not SHORTEST <= len(new) <= LONGEST:
            return self._password_page(request, _fill(t["password.short"]))
        people = self._store.people
        try:
            await run_in_threadpool(people.check_password, user.name, old, ip=_address(request))
            token = read_cookies(request.headers.get("cookie", "")).get(COOKIE)
            await run_in_threadpool(lambda: people.set_password(user.id, new, by=user.id, keep=token))
        except LoginRefused as error:
            return self._password_page(request, _refused(t, error))
        except StoreError as error:
            return self._password_page(request, error.what)
        return self._password_page(request, done=True)


def has_accounts(store: JudgementStore) -> bool:
    """Whether anybody has a password."""
    return any(person.has_password and person.state == "active" for person in store.people.list())


def _fill(text: str) -> str:
    return text.replace("{n}", str(SHORTEST)).replace("{most}", str(LONGEST))


def _refused(t: Mapping[str, str], error: LoginRefused) -> str:
    minutes = -(-error.wait_seconds // 60)
    return t["login.locked"].replace("{n}", str(minutes)) if minutes else t["login.wrong"]


def _name_refused(t: Mapping[str, str], name: str, error: StoreError) -> str:
    """Why a name was not taken, in the reader's language."""
    try:
        shown = clean_name(name)
    except StoreError:
        return t["login.name_unusable"]
    return t["login.name_taken"].replace("{name}", shown) if "taken" in error.what else error.what


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _words(request: Request) -> Mapping[str, str]:
    return languages.words(_language(request))


def _language(request: Request) -> str:
    return languages.choose(request.query_params.get("language"), request.state.language)


def _field(name: str, label: str, *, type: str = "text", value: str = "", complete: str, hint: str = "") -> Any:
    most = 80 if type == "text" else 200
    return {
        "name": name,
        "label": label,
        "type": type,
        "value": value,
        "complete": complete,
        "hint": hint,
        "most": most,
    }


def _page(request: Request, status: int, **values: Any) -> HTMLResponse:
    code = _language(request)
    words = languages.words(code)
    page = _TEMPLATE.render(locale=code, t=words.__getitem__, languages=languages.languages(), **values)
    answer = HTMLResponse(page, status_code=status)
    if "language" in request.query_params:
        set_language(answer, code)
    return answer


async def _form(request: Request) -> dict[str, str]:
    read = urllib.parse.parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in read.items()}
