from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from annotation_ui.app import build, local_door
from rlhf_pipeline.exchange import EXPORT_FORMATS
from rlhf_pipeline.store import JudgementStore
from tests.annotation_ui.planted_store import PEOPLE, plant

HERE = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, int]]:
    folder = tmp_path_factory.mktemp("results")
    store, round_id = plant(folder / "judgements.db", tasks=20, judgements=60)
    token = store.people.make_api_token(store.user("Rea", "reader"), "read")
    store.people.set_password(store.user("Ida", "admin"), "four words in a row")
    guard = build(store, round_id, local_door(7860, accounts=True), folder).guard
    headers = {"authorization": f"Bearer {token}"}
    yield TestClient(guard, base_url=HERE, headers=headers, follow_redirects=False), round_id  # type: ignore[arg-type]
    store.close()


def test_rounds_say_what_is_asked_and_how_far_they_are(site: tuple[TestClient, int]) -> None:
    client, round_id = site
    rounds = client.get("/api/v1/rounds").json()["rounds"]
    [found] = [one for one in rounds if one["id"] == round_id]
    assert found["form"]["kind"] == "pair"
    assert found["judgements"] + found["skips"] > 0


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_every_format_can_be_fetched_and_names_nobody(site: tuple[TestClient, int], format: str) -> None:
    client, round_id = site
    answer = client.get(f"/api/v1/rounds/{round_id}/export?format={format}")
    assert answer.status_code == 200, answer.text
    assert f"round-{round_id}-{format}.json" in answer.headers["content-disposition"]
    rows = answer.json() if EXPORT_FORMATS[format].as_list else [json.loads(row) for row in answer.text.splitlines()]
    assert rows
    for name in PEOPLE:
        assert f'"{name}"' not in answer.text


def test_quality_is_json_that_any_program_reads(site: tuple[TestClient, int]) -> None:
    client, round_id = site
    report = client.get(f"/api/v1/rounds/{round_id}/quality")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads(report.text, parse_constant=refuse)
    assert len(read["annotators"]) >= 3
    assert read["measures"]


@pytest.mark.parametrize("path", ["/quality", "/export?format=trl"])
def test_a_round_that_is_not_there(site: tuple[TestClient, int], path: str) -> None:
    answer = site[0].get(f"/api/v1/rounds/999{path}")
    assert (answer.status_code, answer.json()["error"]) == (404, "there is no round 999")


def test_a_format_that_is_not_there(site: tuple[TestClient, int]) -> None:
    client, round_id = site
    answer = client.get(f"/api/v1/rounds/{round_id}/export?format=xml")
    assert answer.status_code == 409
    assert "xml" in answer.json()["error"]


def test_a_round_nobody_has_judged(tmp_path: Path) -> None:
    store = JudgementStore.open(tmp_path / "s.db")
    made = store.open_round("people", overlap=1, seed=1, source_digest="d", lease_seconds=60)
    client = TestClient(build(store, made, local_door(7860), tmp_path).guard, base_url=HERE)  # type: ignore[arg-type]
    client.post("/login", data={"name": "Ann"}, headers={"origin": HERE}, follow_redirects=False)
    for path in ("", f"/{made}/quality", f"/{made}/export?format=full"):
        answer = client.get(f"/api/v1/rounds{path}")
        assert answer.status_code == 200, answer.text
        json.loads(answer.text or "[]", parse_constant=lambda constant: pytest.fail(constant))
    store.close()
