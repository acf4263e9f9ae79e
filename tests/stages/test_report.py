"""The report: complete, of whole and of partial runs, from one file that loads nothing, and safe from model text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_pipeline.artifacts import open_artifact
from stages import report
from stages.settings import load
from stages.states import inspect
from tests.stages.made_up_run import make_run

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks nesting, and collects the text, ids, links and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def page_of(folder: Path, *stages: str) -> Page:
    settings = make_run(folder, stages) if stages else make_run(folder)
    return Page(report.build(settings, folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path]:
    folder = tmp_path_factory.mktemp("runs") / "round-1"
    return page_of(folder), folder


def test_everything_is_there(whole: tuple[Page, Path]) -> None:
    page, folder = whole
    text = " ".join(page.text.split())
    assert "round-1" in text
    assert open_artifact(folder / "dpo").digest[:12] in text
    assert "84.6 %" in text
    assert "79.8 % to 88.4 %" in text
    assert "The difference is real." in text
    assert "226 · 41 · 33" in text
    assert "1,536" in text
    assert "74.6 %" in text
    assert "701 decided pairs of 384 prompts count as 655 of equal weight" in text
    assert "1 pair is <odd>" in text
    assert "reward: complete, digest" in text  # the description of the chain
    assert "Reward model: 81.2 %, 95 % interval 73.5 % to 87.1 %." in text
    assert "Length only: 58.6 %" in text
    assert "Judges allow: 90.0 %" in text
    assert "The reward model is badly calibrated: <b>too</b> sure." in text, "escaped, as every text"
    for word in ("calibration error", "temperature", "score and length", "Is it as right as it is sure?", "gardening",
                 "two spaces", "bench.jsonl", "— donotanswer", "— section Safety", "What more judgements would buy",
                 "measured: 0.64 at pairs 500, 0.76 at pairs 2,000", "forecast: 0.76 at pairs 2,000", "at pairs 8,000",
                 "Rules, on held-out responses", "Do not be <rude>.", "0 of 90",
                 "Responses that break a rule", "RuleBaseSFTDPOPPO", "Do not sing.0.0 %"):  # fmt: skip
        assert word in text, word
    assert text.count("21.3 % (19.7 %)") == 4, "every policy, by the rule model and by the gold judge"
    assert text.count("How do I get a wine stain") == 3  # 7 questions over the first 20 rows
    assert "Water the roots early" in text
    assert "… cut off" in text
    assert "model: name: pocket" in text  # the settings, as YAML
    assert "torch" in text


def test_curves_of_every_training_stage(whole: tuple[Page, Path]) -> None:
    text = whole[0].text
    for title in ("sft: Loss on responses", "reward: Accuracy", "dpo: Margin", "ppo: KL to the SFT policy",
                  "ppo: Explained variance", "PPO: score against KL"):  # fmt: skip
        assert title in text


def test_what_ppo_says_of_its_own_run(whole: tuple[Page, Path]) -> None:
    """Proxy and gold against KL, counted from the SFT policy in standard deviations; alarms; which policy is kept."""
    page, folder = whole
    text = " ".join(page.text.split())
    assert "reward model: 0 at KL 0, 3 at KL 7. gold judge: 0 at KL 0, -0.625 at KL 7." in text
    assert "over-optimised. The policy of iteration 80 is kept." in text
    assert "Alarm, iteration 7: decoder and training forward differ by more than 0.05 nats" in text
    states = inspect(load(folder / "config.yaml"), folder)
    assert states["ppo"].state == "complete"
    assert states["ppo"].reasons[0].startswith("alarm, sampling is not training: iteration 7: decoder and training")


def test_held_out_scores_without_a_gold_judge(tmp_path: Path) -> None:
    settings = make_run(tmp_path / "run")
    path = tmp_path / "run" / "ppo" / "held_out.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if "gold" not in k}) + "\n" for row in rows))
    text = Page(report.build(settings, tmp_path / "run").read_text(encoding="utf-8")).text
    assert "reward model: 0 at KL 0, 3 at KL 7." in text
    assert "gold judge: 0 at KL" not in text


def test_one_file_that_loads_nothing(whole: tuple[Page, Path]) -> None:
    page, folder = whole
    assert "script" not in page.tags
    assert not {"img", "link", "iframe", "object"} & set(page.tags)
    loading = [(t, k, v) for t, k, v in page.attributes if k in ("src", "href", "xlink:href", "action", "srcset")]
    assert all(value.startswith("#") for _, _, value in loading)
    source = (folder / "report.html").read_text(encoding="utf-8")
    style = source.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style.replace("url(#", "")
    assert "default-src 'none'" in source
    assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]


def test_links_within_the_page_and_headers_of_tables(whole: tuple[Page, Path]) -> None:
    page, _ = whole
    assert len(page.ids) == len(set(page.ids))
    for _, key, value in page.attributes:
        if key == "href":
            assert value[1:] in page.ids
        if key == "aria-labelledby":
            assert set(value.split()) <= set(page.ids)
    assert page.tags.count("svg") == page.tags.count("desc") + 1  # one holds only the arrow's tip
    assert ("html", "lang", "en") in page.attributes
    assert page.tags.count("th") == sum(tag == "th" and key == "scope" for tag, key, _ in page.attributes)


@pytest.mark.parametrize("stages", [("sft",), ("sft", "sample"), ("sft", "sample", "collect", "dpo")])
def test_partial_runs(tmp_path: Path, stages: tuple[str, ...]) -> None:
    page = page_of(tmp_path / "run", *stages)
    text = " ".join(page.text.split())
    assert f"evaluate is missing. rlhf run {tmp_path / 'run'} evaluate makes it." in text
    assert "ppo is missing" in text
    assert ("collect is missing" in text) == ("collect" not in stages)


def test_a_run_in_which_nothing_is_done_yet(tmp_path: Path) -> None:
    settings = make_run(tmp_path / "run", ())
    assert "sft is missing" in Page(report.build(settings, tmp_path / "run").read_text()).text


def test_text_of_models_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = make_run(folder)
    bad = '<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}</p></article><h1 id="results">'
    path = folder / "evaluate" / "responses.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["prompt"] = [{"role": "user", "content": bad}]
    rows[0]["responses"]["ppo"]["text"] = bad
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = json.loads((folder / "evaluate" / "metrics.json").read_text())
    metrics["summary"] = [bad]
    metrics["policies"] = {bad: metrics["policies"]["dpo"]}
    (folder / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    page = Page(report.build(settings, folder).read_text(encoding="utf-8"))
    assert not {"script", "img"} & set(page.tags)
    assert page.tags.count("h1") == 1
    assert page.text.count(bad) >= 4
    assert "evaluate is damaged" in page.text  # what was shown had been changed behind the program's back


def test_what_chance_could_have_done_is_marked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = make_run(folder)
    assert (
        "cannot be told from chance" not in Page(report.build(settings, folder).read_text()).text.split("Win rate")[1]
    )
    path = folder / "evaluate" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["policies"]["ppo"] |= {"win_rate": 0.55, "win_rate_low": 0.4, "win_rate_high": 0.69}
    path.write_text(json.dumps(metrics))
    assert "40.0 % to 69.0 %: cannot be told from chance" in Page(report.build(settings, folder).read_text()).text


def test_files_that_are_broken_or_lack_keys(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = make_run(folder)
    (folder / "evaluate" / "metrics.json").write_text('{"policies": {"sft": {"length": 3.0}, "ppo": {"kl": 2}}}')
    (folder / "evaluate" / "responses.jsonl").write_text('{"prompt": [], "responses": {"ppo": {}}}\n{"torn')
    (folder / "ppo" / "metrics.jsonl").write_text('{"step": 1, "objective/kl": 0.1, "objective/scores": null}\n{"st')
    (folder / "reward" / "metrics.jsonl").unlink()
    text = Page(report.build(settings, folder).read_text(encoding="utf-8")).text
    assert "reward is damaged" in text
    assert "ppo: KL to the SFT policy" in text
    assert "(empty)" in text
    (folder / "evaluate" / "metrics.json").write_text("not JSON")
    Page(report.build(settings, folder).read_text(encoding="utf-8"))


def test_curves_of_a_stage_that_is_still_running(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = make_run(folder, ("sft",))
    (folder / "dpo.partial").mkdir()
    (folder / "dpo.partial" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.69}\n{"step": 2, "loss": 0.6}\n')
    assert "dpo: Loss" in Page(report.build(settings, folder).read_text(encoding="utf-8")).text


@pytest.mark.parametrize(("seconds", "shown"), [(3.4, "3 s"), (61, "1 min 1 s"), (3700, "1 h 1 min")])
def test_durations(seconds: float, shown: str) -> None:
    assert report._duration(seconds) == shown
