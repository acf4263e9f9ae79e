from __future__ import annotations

import os
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_pipeline.errors import StoreError
from rlhf_pipeline.exchange.pseudonyms import Pseudonyms, number_of, read_salt, salt_beside

ONE, TWO = Pseudonyms(b"1" * 32), Pseudonyms(b"2" * 32)


def test_a_person_has_one_pseudonym_under_one_salt() -> None:
    assert ONE.of("Ann Lee") == ONE.of("ann  lee") != ONE.of("Bob")
    assert ONE.of("Ann Lee") != TWO.of("Ann Lee")
    assert ONE.salt_digest != TWO.salt_digest
    assert str(uuid.UUID(ONE.of("Ann"))) == ONE.of("Ann")
    assert "31" * 16 not in ONE.salt_digest


def test_who_was_imported_keeps_the_pseudonym() -> None:
    assert ONE.of(ONE.of("Ann"), "import") == ONE.of("Ann")
    assert ONE.of(ONE.of("Ann")) != ONE.of("Ann")
    assert ONE.of("Gold judge", "simulated") != "Gold judge"
    assert [ONE.of(name, "import") for name in ("7", "import", "import 2")] == ["7", "import", "import 2"]


def test_an_imported_name_that_is_no_pseudonym_is_hidden() -> None:
    assert ONE.of("ann@example.org", "import") == ONE.of("ann@example.org")
    assert ONE.of("import of Ann", "import") != "import of Ann"


def test_numbers_are_of_31_bits_and_stay_what_they_are() -> None:
    numbers = {number_of(ONE.of(str(n))) for n in range(1000)}
    assert len(numbers) == 1000
    assert all(0 <= n < 2**31 for n in numbers)
    assert all(number_of(str(n)) == n for n in numbers)
    assert number_of(str(2**31 - 1)) == 2**31 - 1
    assert 0 <= number_of(str(2**31)) < 2**31


def test_the_salt_lies_beside_the_stores_file(tmp_path: Path) -> None:
    assert salt_beside(tmp_path / "judgements.db", Path("run")) == tmp_path / "judgements.salt"
    assert salt_beside(f"sqlite:///{tmp_path}/j.db", Path("run")) == tmp_path / "j.salt"
    assert salt_beside("postgresql://me@host/judgements", Path("run")) == Path("run/judgements.salt")


def test_the_salt_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "salt"
    with ThreadPoolExecutor(8) as pool:
        salts = set(pool.map(lambda _: read_salt(path), range(32)))
    assert len(salts) == 1
    assert len(salts.pop()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["salt"]


@pytest.mark.parametrize("content", ["", "zz", "abcd", "é"])
def test_a_damaged_salt_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "salt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match="holds no salt"):
        read_salt(path)
    assert path.read_text(encoding="utf-8") == content


def test_a_salt_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be kept"):
        read_salt(tmp_path / "missing" / "salt")
