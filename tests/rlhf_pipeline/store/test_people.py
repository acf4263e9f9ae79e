from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select

from rlhf_pipeline.errors import AnswerRefused, LoginRefused, StoreError
from rlhf_pipeline.store import JudgementStore, passwords
from rlhf_pipeline.store.logins import SEEN_SECONDS
from rlhf_pipeline.store.people import SESSION_SECONDS, User, clean_name
from rlhf_pipeline.store.tables import invite, metadata, user


@pytest.fixture
def store(location: str) -> Iterator[JudgementStore]:
    opened = JudgementStore.open(location)
    yield opened
    opened.close()


def test_a_person_is_the_same_whatever_the_case_and_blanks(store: JudgementStore) -> None:
    ann = store.user("Ann Lee")
    assert store.user("  ann   LEE ") == ann
    assert store.user("Ann") != ann


def test_a_person_does_not_judge_under_the_name_of_a_program(store: JudgementStore) -> None:
    robot = store.user("Ada the expert", "simulated")
    with pytest.raises(StoreError, match="known as simulated"):
        store.user("ada the EXPERT")
    assert store.user("Ada the expert", "simulated") == robot


def test_a_session_names_its_person_until_it_expires_or_ends(store: JudgementStore) -> None:
    people, ann = store.people, store.user("Ann")
    token = people.start_session(ann, now=0)
    assert people.of_session(token, now=0) == User(ann, "Ann", "annotator")
    assert people.of_session(token, now=SESSION_SECONDS * 1000 + 1) is None
    assert people.of_session(token + "x", now=0) is None
    people.end_session(token)
    assert people.of_session(token, now=0) is None


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\x00b", "a\u202eb", "a\ud800"])
def test_names_that_cannot_be_shown(name: str) -> None:
    with pytest.raises(StoreError):
        clean_name(name)


@pytest.mark.parametrize("name", ["علی‌رضا", "李小龍", "José", "O'Neil-Smith 2"])
def test_names_of_all_the_world(name: str) -> None:
    assert clean_name(name) == name


# Passwords


@pytest.fixture
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id that costs next to nothing: the tests of what is done with the answer need no strength."""
    monkeypatch.setattr(passwords, "hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


GOOD = "correct horse battery"
MINUTE = 60_000


@pytest.fixture
def ann(store: JudgementStore, cheap_hashes: None) -> int:
    """A person with a password."""
    return store.people.accept_invite(store.people.invite("annotator"), "Ann", GOOD).id


def test_passwords_are_kept_as_argon2id_with_the_costs_of_the_rfc() -> None:
    kept = passwords.hash_password(GOOD)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert passwords.verify(kept, GOOD)
    assert not passwords.verify(kept, GOOD + "x")
    assert not passwords.verify(None, GOOD)
    assert kept != passwords.hash_password(GOOD), "salted"


@pytest.mark.parametrize(
    ("password", "said"),
    [("short", "5 characters; wanted: 10 to 200"), ("x" * 201, "201 characters"), ("abababababab", "too simple")],
)
def test_passwords_that_are_not_good_ones(password: str, said: str) -> None:
    with pytest.raises(StoreError, match=said):
        passwords.hash_password(password)


def test_the_same_letters_in_another_normal_form_are_the_same_password(cheap_hashes: None) -> None:
    assert passwords.verify(passwords.hash_password("pässwörter für alle"), "pa\u0308sswo\u0308rter fu\u0308r alle")


def test_a_password_lets_its_person_in_and_nobody_else(store: JudgementStore, ann: int) -> None:
    store.user("Bob")
    assert store.people.check_password("  ann ", GOOD) == User(ann, "Ann", "annotator")
    for name, password in (
        ("Ann", "wrong horse battery"),
        ("Bob", GOOD),
        ("nobody", GOOD),
        ("", ""),
        ("\ud800", "\x00"),
    ):
        with pytest.raises(LoginRefused, match="the name or the password is wrong"):
            store.people.check_password(name, password)


def test_an_unknown_name_costs_a_hash_like_a_known_one(
    store: JudgementStore, ann: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    verify = PasswordHasher.verify

    def count(self: PasswordHasher, kept: str, given: bytes) -> bool:
        looked_at.append(kept)
        return verify(self, kept, given)

    monkeypatch.setattr(PasswordHasher, "verify", count)
    store.user("Bob")
    for name in ("Ann", "Bob", "nobody"):
        with pytest.raises(LoginRefused):
            store.people.check_password(name, "wrong horse battery")
    assert len(looked_at) == 3
    assert looked_at[1] == looked_at[2] != looked_at[0]


def test_a_hash_of_lower_costs_is_made_anew_at_sign_in(
    store: JudgementStore, ann: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "hasher", PasswordHasher(time_cost=2, memory_cost=8, parallelism=1))
    store.people.check_password("Ann", GOOD)
    with store.database.read() as connection:
        assert "t=2" in connection.execute(select(user.c.password_hash).where(user.c.id == ann)).scalar_one()


def fail(store: JudgementStore, name: str, *, ip: str = "", now: int = 0) -> str:
    with pytest.raises(LoginRefused) as refused:
        store.people.check_password(name, "wrong horse battery", ip=ip, now=now)
    return refused.value.what


def test_a_name_that_is_tried_too_often_waits_longer_and_longer(store: JudgementStore, ann: int) -> None:
    for _ in range(5):
        assert "wrong" in fail(store, "ann")
    assert fail(store, "ANN", now=1) == "too many attempts: try again in 30 seconds"
    with pytest.raises(LoginRefused, match="too many") as refused:
        store.people.check_password("Ann", GOOD, now=29_000)  # the right one does not help
    assert refused.value.wait_seconds == 1
    assert "wrong" in fail(store, "ann", now=30_000)
    assert "60 seconds" in fail(store, "ann", now=30_000)
    for n in range(6):
        fail(store, "ann", now=(n + 2) * 16 * MINUTE)
    assert "15 minutes" in fail(store, "ann", now=7 * 16 * MINUTE)
    assert store.people.check_password("Ann", GOOD, now=9 * 16 * MINUTE).id == ann
    assert "wrong" in fail(store, "ann", now=9 * 16 * MINUTE), "the right password begins anew"


def test_names_that_are_not_there_wait_as_well(store: JudgementStore, cheap_hashes: None) -> None:
    said = [fail(store, "nobody") for _ in range(6)]
    assert said[4:] == ["the name or the password is wrong", "too many attempts: try again in 30 seconds"]


@pytest.mark.parametrize("addresses", [["10.0.0.1"], [f"2001:db8::{n}" for n in range(1, 30)]])
def test_an_address_that_tries_many_names_waits(store: JudgementStore, ann: int, addresses: list[str]) -> None:
    for n in range(20):
        assert "wrong" in fail(store, f"name {n}", ip=addresses[n % len(addresses)])
    assert "too many" in fail(store, "another", ip=addresses[-1])
    with pytest.raises(LoginRefused, match="too many"):
        store.people.check_password("Ann", GOOD, ip=addresses[0], now=0)
    assert store.people.check_password("Ann", GOOD, ip="10.9.9.9", now=0).id == ann


def test_many_attempts_at_once_gain_nothing(store: JudgementStore, ann: int) -> None:
    said: list[str] = []

    def attempt(number: int) -> None:
        try:
            store.people.check_password("Ann", f"guess number {number}", now=0)
        except LoginRefused as refused:
            said.append(refused.what)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("wrong" in what for what in said) == 5
    assert sum("too many" in what for what in said) == 11


# Invitations


def test_an_invitation_makes_one_account_in_its_role(store: JudgementStore, cheap_hashes: None) -> None:
    people = store.people
    token = people.invite("reader", days=2, now=0)
    found = people.invited(token, now=0)
    assert found is not None
    assert (found.role, found.expires_at) == ("reader", 2 * 86_400_000)
    rita = people.accept_invite(token, "Rita", GOOD, now=5)
    assert rita.role == "reader"
    assert people.invited(token, now=6) is None
    with pytest.raises(LoginRefused, match="has been used"):
        people.accept_invite(token, "Eve", GOOD, now=6)
    assert people.find("Eve") is None
    with store.database.read() as connection:
        kept = connection.execute(select(invite)).one()
        assert token not in map(str, kept)
        assert kept.used_by == rita.id


def test_an_invitation_expires(store: JudgementStore, cheap_hashes: None) -> None:
    token = store.people.invite("annotator", days=1, now=0)
    with pytest.raises(LoginRefused, match="its time is over"):
        store.people.accept_invite(token, "Ann", GOOD, now=86_400_001)
    with pytest.raises(LoginRefused):
        store.people.accept_invite("made up", "Ann", GOOD)


def test_who_judged_by_name_alone_gets_an_account_with_what_they_judged(store: JudgementStore, admin: int) -> None:
    people, bea = store.people, store.user("Bea")
    by_name = people.start_session(bea)
    token = people.invite_known(bea, by=admin, days=1)
    found = people.invited(token)
    assert found is not None
    assert (found.role, found.user_id, found.name) == ("annotator", bea, "Bea")
    with pytest.raises(StoreError, match="wanted: 10"):
        people.accept_invite(token, "", "short")
    assert people.accept_invite(token, "somebody else", GOOD) == User(bea, "Bea", "annotator")
    assert people.check_password("bea", GOOD).id == bea
    assert people.of_session(by_name) is None, "whoever came in under the name is out"
    assert people.invited(token) is None
    assert len(people.list()) == 2


def test_a_forgotten_password_is_set_by_a_link_and_the_role_is_the_present_one(store: JudgementStore, ann: int) -> None:
    token = store.people.invite_known(ann)
    store.people.set_role(ann, "reader")
    assert store.people.accept_invite(token, "", GOOD + "!").role == "reader"
    assert store.people.check_password("Ann", GOOD + "!").id == ann


def test_who_is_blocked_or_a_program_is_sent_no_link(store: JudgementStore, ann: int) -> None:
    token = store.people.invite_known(ann)
    store.people.block(ann)
    assert store.people.invited(token) is None
    for user_id in (ann, store.user("Robot", "simulated")):
        with pytest.raises(StoreError, match="cannot be invited"):
            store.people.invite_known(user_id)


def test_a_mistake_does_not_use_the_invitation_up(store: JudgementStore, cheap_hashes: None) -> None:
    store.user("Ann")
    token = store.people.invite("annotator")
    for name, password, said in (("ANN", GOOD, "taken"), ("", GOOD, "name is needed"), ("Bob", "short", "wanted: 10")):
        with pytest.raises(StoreError, match=said):
            store.people.accept_invite(token, name, password)
    assert store.people.accept_invite(token, "Bob", GOOD).name == "Bob"


def test_an_invitation_that_is_used_twice_at_once_makes_one_account(store: JudgementStore, cheap_hashes: None) -> None:
    token, made = store.people.invite("annotator"), []

    def accept(number: int) -> None:
        try:
            made.append(store.people.accept_invite(token, f"person {number}", GOOD))
        except LoginRefused:
            made.append(None)

    threads = [threading.Thread(target=accept, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one is not None for one in made) == 1
    assert len(store.people.list()) == 1


# Rights


@pytest.fixture
def admin(store: JudgementStore, cheap_hashes: None) -> int:
    return store.people.accept_invite(store.people.invite("admin"), "Root", GOOD).id


def test_only_admins_change_people(store: JudgementStore, admin: int, ann: int) -> None:
    people = store.people
    for refused in (
        lambda: people.invite("annotator", by=ann),
        lambda: people.invite_known(admin, by=ann),
        lambda: people.set_role(ann, "admin", by=ann),
        lambda: people.block(admin, by=ann),
        lambda: people.unblock(ann, by=ann),
        lambda: people.set_password(admin, GOOD, by=ann),
    ):
        with pytest.raises(StoreError, match="Ann is annotator and may not do that"):
            refused()
    people.set_password(ann, GOOD + "!", by=ann)
    people.set_role(ann, "reader", by=admin)
    assert people.check_password("Ann", GOOD + "!").role == "reader"
    with pytest.raises(StoreError, match="no role 'boss'"):
        people.set_role(ann, "boss", by=admin)


def test_the_last_admin_stays(store: JudgementStore, admin: int, ann: int) -> None:
    for refused in (lambda: store.people.block(admin), lambda: store.people.set_role(admin, "reader")):
        with pytest.raises(StoreError, match="the last admin"):
            refused()
    store.people.set_role(ann, "admin")
    store.people.block(admin)
    assert [(p.name, p.state) for p in store.people.list()] == [("Ann", "active"), ("Root", "blocked")]


def test_who_is_blocked_can_do_nothing_until_unblocked(store: JudgementStore, ann: int) -> None:
    people = store.people
    session, token = people.start_session(ann), people.make_api_token(ann, "judge")
    round_id = store.open_round("people", overlap=1, seed=1, source_digest="d", lease_seconds=60)
    people.block(ann)
    assert people.of_session(session) is None
    assert people.of_api_token(token) is None
    with pytest.raises(LoginRefused, match="wrong"):
        people.check_password("Ann", GOOD)
    with pytest.raises(AnswerRefused, match="Ann is given no tasks: blocked annotator"):
        store.lease(round_id, ann, 1)
    people.unblock(ann)
    assert people.of_session(session) is None, "old sessions stay ended"
    assert people.check_password("Ann", GOOD).id == ann
    assert store.lease(round_id, ann, 1) == []


def test_a_reader_is_given_no_tasks(store: JudgementStore) -> None:
    round_id = store.open_round("people", overlap=1, seed=1, source_digest="d", lease_seconds=60)
    with pytest.raises(AnswerRefused, match="active reader"):
        store.lease(round_id, store.user("Rita", "reader"), 1)


# Sessions and tokens


def test_sessions_are_listed_and_revoked_one_by_one_or_all(store: JudgementStore, ann: int) -> None:
    people = store.people
    one = people.start_session(ann, ip="10.0.0.1", agent="Browser\u202e 1", now=1000)
    two, three = people.start_session(ann, now=2000), people.start_session(ann, now=3000)
    found = people.sessions(ann, now=4000)
    assert [(s.created_at, s.ip, s.agent) for s in found] == [
        (3000, "", ""),
        (2000, "", ""),
        (1000, "10.0.0.1", "Browser? 1"),
    ]
    assert one not in found[2].id
    assert people.revoke_session(found[2].id)
    assert not people.revoke_session(found[2].id)
    assert [people.of_session(t, now=4000) is not None for t in (one, two, three)] == [False, True, True]
    assert people.revoke_sessions(ann, keep=three) == 1
    assert [people.of_session(t, now=4000) is not None for t in (one, two, three)] == [False, False, True]
    people.set_password(ann, GOOD + "!")
    assert people.sessions(ann, now=4000) == []


def test_a_session_says_when_its_person_was_last_seen(store: JudgementStore, ann: int) -> None:
    token = store.people.start_session(ann, now=0)
    store.people.of_session(token, now=SEEN_SECONDS * 1000)
    assert store.people.sessions(ann, now=0)[0].last_seen_at == 0
    store.people.of_session(token, now=SEEN_SECONDS * 1000 + 1)
    assert store.people.sessions(ann, now=0)[0].last_seen_at == SEEN_SECONDS * 1000 + 1


def test_tokens_for_programs_have_a_scope_that_the_role_allows(store: JudgementStore, admin: int, ann: int) -> None:
    people, rita = store.people, store.user("Rita", "reader")
    token = people.make_api_token(rita, "read", by=admin)
    assert people.of_api_token(token) == User(rita, "Rita", "reader", None, "read")
    for who, scope in ((ann, "read"), (ann, "admin"), (rita, "judge"), (rita, "admin")):
        with pytest.raises(StoreError, match="may not have a token"):
            people.make_api_token(who, scope)
    with pytest.raises(StoreError, match="no scope 'all'"):
        people.make_api_token(admin, "all")
    assert people.of_api_token(people.start_session(ann)) is None
    [kept] = people.api_tokens(rita)
    people.set_role(rita, "annotator")
    assert people.of_api_token(token) is None, "the role no longer allows it"
    people.set_role(rita, "reader")
    assert people.revoke_api_token(kept.id)
    assert people.of_api_token(token) is None
    assert not people.revoke_api_token(kept.id)


def test_no_secret_is_in_the_store(store: JudgementStore, ann: int) -> None:
    people = store.people
    secrets = [GOOD, people.invite("reader"), people.start_session(ann), people.make_api_token(ann, "judge")]
    with store.database.read() as connection:
        for table in metadata.tables.values():
            for row in connection.execute(select(table)):
                assert not [s for s in secrets if s in repr(tuple(row))], table.name


def test_every_change_of_a_person_is_in_the_audit_trail(store: JudgementStore, admin: int, ann: int) -> None:
    people = store.people
    people.set_role(ann, "reader", by=admin)
    people.block(ann, by=admin)
    people.block(ann, by=admin)  # changes nothing
    people.unblock(ann, by=admin)
    people.set_password(ann, GOOD, by=admin)
    people.make_api_token(ann, "read", by=admin)
    with pytest.raises(LoginRefused):
        people.check_password("ann", "wrong horse battery", ip="10.0.0.1")
    trail = [(e.user, e.verb, e.object, e.object_id) for e in store.events(limit=6)][::-1]
    assert trail == [
        ("Root", "set role", "user", ann),
        ("Root", "block", "user", ann),
        ("Root", "unblock", "user", ann),
        ("Root", "set password", "user", ann),
        ("Root", "add", "api token", 1),
        ("Ann", "refuse", "sign in", None),
    ]
    newest = store.events(limit=1)[0]
    assert newest.detail == {"name": "ann", "ip": "10.0.0.1"}
    assert [e.id for e in store.events(limit=2, before=newest.id)] == [newest.id - 1, newest.id - 2]
    assert {e.user for e in store.events(user_id=ann)} == {"Ann"}


def test_a_person_has_a_language(store: JudgementStore, ann: int) -> None:
    store.people.set_locale(ann, "fa")
    token = store.people.start_session(ann)
    seen = store.people.of_session(token)
    assert seen is not None
    assert seen.locale == "fa"
    with pytest.raises(StoreError, match="names no language"):
        store.people.set_locale(ann, "../../etc")
