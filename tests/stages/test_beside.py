from __future__ import annotations

import os
import signal
import time

import pytest

from rlhf_pipeline.errors import DataError, TrainingError
from stages.beside import Beside


def speak(number: int) -> int:
    print("dpo: begins")
    print("  half", end="")
    print(" a line")
    return number + 1


def refuse() -> None:
    raise DataError("line 3 is empty", where="a.jsonl", advice="delete it")


def stumble() -> None:
    _ = {}["absent"]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_value_comes_back_and_what_is_said_comes_with_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert Beside("dpo", speak, 41).result() == 42
    assert capsys.readouterr().out == "dpo: begins\n  dpo | half a line\n"


def test_a_mistake_of_the_user_arrives_whole() -> None:
    with pytest.raises(DataError) as caught:
        Beside("dpo", refuse).result()
    assert (caught.value.what, caught.value.where, caught.value.advice) == ("line 3 is empty", "a.jsonl", "delete it")
    assert str(caught.value) == "a.jsonl: line 3 is empty\n  → delete it"


def test_the_traceback_of_what_was_not_foreseen_comes_with_it() -> None:
    with pytest.raises(KeyError) as caught:
        Beside("dpo", stumble).result()
    assert any("in stumble" in note for note in caught.value.__notes__)


def test_a_process_that_is_killed_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"dpo was ended from outside \(exit code -9\)"):
        Beside("dpo", die).result()


def test_a_process_can_be_stopped() -> None:
    beside = Beside("dpo", time.sleep, 60)
    assert beside.alive()
    beside.stop()
    with pytest.raises(TrainingError):
        beside.result()
