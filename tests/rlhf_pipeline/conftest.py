"""A private PostgreSQL for the judgement store's tests; every test of the store runs on SQLite and on it."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

WITHOUT = "RLHF_TEST_WITHOUT_POSTGRES"


def _binaries() -> Path:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    if found:
        return Path(found[-1]).parent
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).parent
    if os.environ.get(WITHOUT) == "1":
        pytest.skip(f"{WITHOUT}=1")
    pytest.fail(f"PostgreSQL is needed: apt-get install -y postgresql (or set {WITHOUT}=1 to go without)")


def _account() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a fresh cluster, without a database name, that listens on a socket of its own only."""
    binaries, account = _binaries(), _account()
    folder = Path(tempfile.mkdtemp(prefix="rlhf-pg-"))  # pytest's own folders have paths too long for a socket
    try:
        if account:
            shutil.chown(folder, account)

        def call(*command: str) -> None:
            log = folder / "log"
            done = subprocess.run(command, cwd="/", user=account, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")

        data = str(folder / "data")
        call(str(binaries / "initdb"), "-D", data, "-U", "rlhf", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=120"
        call(str(binaries / "pg_ctl"), "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://rlhf@/{{name}}?host={folder}"
        finally:
            call(str(binaries / "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_database(postgres: str) -> str:
    """A URL under which everything is in a fresh, empty schema (a database each would be a thousand files each)."""
    import psycopg

    name = "t" + os.urandom(6).hex()
    url = postgres.format(name="postgres")
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{url}&options=-csearch_path%3D{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store may be made, once for each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "judgements.db")
    return str(request.getfixturevalue("postgres_database"))
