"""Pseudonyms: a person has the same one in every export of a store, and nobody can tell whose without the salt."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import uuid
from pathlib import Path

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.store.engine import read_url

_LENGTH = 32
_PSEUDONYM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]{1,16}|import( [0-9]+)?", re.ASCII)


class Pseudonyms:
    """Names to pseudonyms under one salt.

    A pseudonym is a UUID, so that tools that know people by UUID take it as it is. Who came in by an import and bears a
    pseudonym (a UUID, a number, "import", "import 2") keeps it.
    """

    def __init__(self, salt: bytes) -> None:
        assert len(salt) >= _LENGTH // 2, "a short salt can be guessed"
        self._salt = salt

    def of(self, name: str, role: str = "annotator") -> str:
        """The pseudonym of the person of this name; case and runs of blanks make no difference, as in the store."""
        if role == "import" and _PSEUDONYM.fullmatch(name):
            return name
        key = " ".join(name.split()).casefold()
        digest = hmac.new(self._salt, key.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
        return str(uuid.UUID(bytes=digest[:16], version=4))

    @property
    def salt_digest(self) -> str:
        """Tells exports of one salt from those of another without giving it away."""
        return hashlib.sha256(b"salt:" + self._salt).hexdigest()[:16]


def number_of(pseudonym: str) -> int:
    """A pseudonym as a number of 31 bits, for tools that know people by number; a number stays what it is."""
    if pseudonym.isdecimal() and int(pseudonym) < 2**31:
        return int(pseudonym)
    return int.from_bytes(hashlib.sha256(pseudonym.encode("utf-8", "surrogatepass")).digest()[:4], "big") >> 1


def salt_beside(store: str | Path, otherwise: Path) -> Path:
    """Where the salt of a store is kept: beside its file, so that it goes with it; of a server's, in ``otherwise``."""
    url = read_url(store)
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(url.database).with_suffix(".salt")
    return otherwise / "judgements.salt"


def read_salt(path: Path) -> bytes:
    """The salt that is kept in a file, made at first use and readable by its owner alone.

    Raises:
        StoreError: it cannot be read or written, or is no salt.
    """
    try:
        if not path.exists():
            temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as out:
                out.write(secrets.token_hex(_LENGTH) + "\n")
                out.flush()
                os.fsync(out.fileno())
            try:
                os.link(temporary, path)  # whoever comes second finds the first one's
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise StoreError(
            f"the salt of the pseudonyms cannot be kept: {error.strerror}",
            where=str(path),
            advice="Give this user write access to the folder.",
        ) from None
    except ValueError:
        salt = b""
    if len(salt) < _LENGTH:
        raise StoreError(
            f"this file holds no salt: wanted {2 * _LENGTH} hex digits",
            where=str(path),
            advice="Restore it from a copy; without it pseudonyms differ from those of earlier exports.",
        )
    return salt
