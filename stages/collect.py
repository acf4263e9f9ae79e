"""Collect judgements of response pairs and export them as preferences.

Reads the sampled responses (or ready-made preferences), fills the judgement store with pairs or rankings, and writes
``preferences.jsonl`` once enough has been judged, with what there is to know of them in ``preference_report.json`` (and
``demonstrations.jsonl`` where people corrected responses, ``rules.jsonl`` where rules were asked). Who judges is
``collect.judges``: people in the browser, the simulated annotators, or those who made an imported data set; all go
through the same store. The store outlives the stage: what was judged is never deleted, and an interrupted run goes on
where it stopped.

    rlhf run CONFIG collect
    rlhf annotate RUN
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlhf_pipeline.config import NO_EFFECT, Section
from rlhf_pipeline.data.sources import SourceConfig
from rlhf_pipeline.errors import ConfigError, DataError, UsageError, WaitingForPeople
from rlhf_pipeline.pocket.annotators import PANEL
from stages import labels, simulated
from stages.job import Job
from stages.labels import VotesSection, WeakSection
from stages.rounds import FormSection, digest, open_round

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rlhf_pipeline.artifacts import Artifact
    from rlhf_pipeline.store import JudgementStore
    from rlhf_pipeline.store.records import Progress
    from stages.settings import Settings


class Config(Section):
    """Who judges, and how much."""

    judges: Literal["people", "simulated", "imported"] = "people"
    """``people`` judge in the browser, ``simulated`` annotators judge by the pocket model's gold judge,
    ``imported`` takes the judgements of ``data.preferences``."""
    pairs_per_prompt: int = Field(2, ge=1)
    """Pairs of different responses to one prompt; raising it gives more judgements of the same prompts."""
    max_pairs: int | None = Field(None, ge=1)
    """At most so many pairs (or rankings), of prompts drawn by lot, each prompt's first before any second; null takes
    all."""
    ranking_size: int = Field(4, ge=2, le=9)
    """Where ``form.kind`` is ``ranking``: responses to one prompt that are put in order at once. K of them give
    K (K - 1) / 2 preferences."""
    form: FormSection = FormSection()
    """What people are asked about each pair or ranking; of simulated annotators only the rules are asked beside the
    choice, and they know five (``rlhf_pipeline/pocket/judge.py``)."""
    overlap: int = Field(1, ge=1)
    """Different people who judge each pair; from 2 on their agreement is reported."""
    panel: list[str] = Field(default_factory=lambda: ["Ada the expert", "Bruno the steady"], min_length=1)
    """The simulated annotators, by name; they take turns, each pair goes to ``overlap`` different ones."""
    lease_minutes: Annotated[int, NO_EFFECT] = Field(30, ge=1)
    """Minutes after which a pair that somebody took and did not judge goes to others; changes no result."""
    order: Literal["sequence", "random", "uncertainty"] = "sequence"
    """In which order people judge: prompt by prompt, by lot, or first where a reward model is least sure; of the last
    a tenth is drawn by lot all the same, as a fair sample."""
    uncertainty_from: str | None = None
    """Where the order is by uncertainty: the ``reward`` folder of a finished run on the same base model."""
    gold: SourceConfig | None = None
    """Preferences whose better side is known; people judge them as gold questions and in training, and nobody else."""
    gold_rate: float = Field(0.0, ge=0, le=0.5)
    """Share of a person's tasks that are gold questions, indistinguishable from the others; raising it measures people
    sooner and costs as many judgements."""
    gold_feedback: bool = False
    """Whether people are told the right answer after a gold question."""
    repeat_rate: float = Field(0.0, ge=0, le=0.5)
    """Share of a person's tasks that they judged at least 30 tasks before, given again with sides swapped."""
    training_tasks: int = Field(0, ge=0)
    """Gold questions that everybody answers first, with the right answer shown after each."""
    edit_minutes: int | None = Field(None, ge=0)
    """Minutes for which a judgement may be changed; null is for ever."""
    guidelines: str | None = None
    """Markdown file with what the annotators are told; null is a general text on preferring the better response."""
    votes: VotesSection = VotesSection()
    """How the votes on a pair become one preference, and which of them count."""
    weak: WeakSection = WeakSection()
    """Labels for pairs that nobody judges, by functions or a reward model; the reward stage learns from them where
    ``reward.weak`` says so, and no other stage does."""
    store: str | None = None
    """Where judgements are kept: a file or ``postgresql+psycopg://USER@HOST/DATABASE`` (the password in PGPASSWORD);
    null is ``judgements.db`` in the run folder."""

    @field_validator("panel")
    @classmethod
    def _known_people(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in PANEL:
                raise ValueError(f"no simulated annotator is called {name!r}; there are: {', '.join(PANEL)}")
        if len(set(names)) < len(names):
            raise ValueError("a simulated annotator is named twice")
        return names

    @model_validator(mode="after")
    def _enough_people(self) -> Config:
        if self.order == "uncertainty" and self.uncertainty_from is None:
            raise ValueError("order is uncertainty, but uncertainty_from names no reward model")
        if self.judges == "simulated" and self.form.kind == "ranking":
            raise ValueError("form.kind: ranking is asked of people; judges: simulated compare pairs")
        if self.judges == "simulated" and self.overlap > len(self.panel):
            raise ValueError(f"overlap is {self.overlap}, but the panel has {len(self.panel)} annotators; name more")
        return self


def run(job: Job) -> dict[str, Any]:
    """Fill the store, see that the pairs get judged, export.

    Raises:
        WaitingForPeople: judgements are still needed.
        StoreError: the store cannot be used.
    """
    from rlhf_pipeline.aggregate import demonstrations
    from rlhf_pipeline.records import write_jsonl
    from rlhf_pipeline.store import JudgementStore
    from rlhf_pipeline.store.forms import forms_of

    config: Config = job.config
    url = store_url(config, job.run_folder)
    store = JudgementStore.open(url)
    try:
        if config.judges == "imported":
            round_id = _import(job, store)
        else:
            round_id = open_round(store, job.settings, _sampled(job), config.judges)
        if config.judges == "simulated":
            simulated.judge(job, store, round_id)
        if config.judges == "people":
            _wait_for_people(job, store, round_id)
        tasks, judgements = store.tasks(round_id), store.judgements(round_id)
        forms = forms_of(store.database, {row.form_digest for row in judgements})
        seen = {"round": round_id, "last_judgement": _last_judgement(store, round_id)}
    finally:
        store.close()
    preferences, summary = labels.count(job, url, tasks, judgements)
    if not summary.preferences + summary.corrections:
        raise DataError(
            f"no preference came of {summary.judgements} judgements: {summary.ties} pairs came out even, "
            f"{summary.skipped} were skipped",
            where=url,
            advice="judge more pairs: raise collect.pairs_per_prompt or sample.prompts",
        )
    preferences += labels.weak(job, tasks, preferences)
    write_jsonl(job.folder / "preferences.jsonl", (p.to_json() for p in preferences))
    corrected = demonstrations(tasks, judgements)
    (job.folder / "demonstrations.jsonl").unlink(missing_ok=True)  # of a try that was interrupted
    if corrected:
        write_jsonl(job.folder / "demonstrations.jsonl", (d.to_json() for d in corrected))
        job.say(f"{len(corrected):,} corrected responses in demonstrations.jsonl, ready for data.demonstrations")
    labels.report(job, preferences)
    return summary.to_json() | labels.rules(job, tasks, judgements, forms) | seen


def judged_since(config: Config, run_folder: Path, metrics: Mapping[str, Any]) -> str | None:
    """That people have judged, revised or taken back since the stage was complete; None where they have not."""
    if config.judges != "people" or "last_judgement" not in metrics:
        return None
    with _looking(config, run_folder) as store:
        if store is None or _last_judgement(store, metrics["round"]) == metrics["last_judgement"]:
            return None
        return "people have judged, revised or taken back since"


def still_needed(config: Config, run_folder: Path) -> str | None:
    """What people have still to do, as the store has it now; None where it cannot be asked."""
    with _looking(config, run_folder) as store:
        rounds = [one.id for one in store.rounds() if one.name == "people"] if store is not None else []
        return _needed(store.progress(rounds[-1])) if store is not None and rounds else None


@contextlib.contextmanager
def _looking(config: Config, run_folder: Path) -> Iterator[JudgementStore | None]:
    """The store for a look at it; None where there is none, or it cannot be opened: that is said when it is needed."""
    from rlhf_pipeline.errors import StoreError
    from rlhf_pipeline.store import JudgementStore

    url = store_url(config, run_folder)
    if "://" not in url and not Path(url).is_file():
        yield None
        return
    try:
        store = JudgementStore.open(url)
    except StoreError:
        yield None
        return
    try:
        yield store
    finally:
        store.close()


def _last_judgement(store: JudgementStore, round_id: int) -> int:
    """The newest row, be it a revision or an answer taken back; known answers and repeats move nothing."""
    rows = store.judgements(round_id, all_revisions=True)
    return max((row.id for row in rows if row.purpose in ("judge", "adjudicate")), default=0)


def store_url(config: Config, run_folder: Path) -> str:
    """Where the judgements of a run are kept."""
    return config.store or str(run_folder / "judgements.db")


def open_for_people(settings: Settings, run_folder: Path) -> int:
    """The id of the round in which people judge this run's sampled responses, whoever judges them otherwise.

    Raises:
        UsageError: nothing has been sampled yet.
        StoreError: the store cannot be used.
    """
    from rlhf_pipeline.artifacts import open_artifact
    from rlhf_pipeline.store import JudgementStore

    folder = run_folder / "sample"
    if not folder.is_dir():
        raise UsageError(
            "there is nothing to judge yet: no responses have been sampled",
            where=str(folder),
            advice=f"rlhf run {run_folder} sample"
            if "sample" in settings.run.stages
            else "this run leaves out sampling: add sample to run.stages, and run it",
        )
    store = JudgementStore.open(store_url(settings.collect, run_folder))
    try:
        return open_round(store, settings, open_artifact(folder), "people")
    finally:
        store.close()


def _sampled(job: Job) -> Artifact:
    if "sample" not in job.inputs:
        raise ConfigError(
            f"collect.judges is {job.config.judges}, but this run samples no responses",
            where="run.stages",
            advice="add sample to run.stages, or set collect.judges: imported and data.preferences",
        )
    return job.inputs["sample"]


def _wait_for_people(job: Job, store: JudgementStore, round_id: int) -> None:
    progress = store.progress(round_id)
    if not progress.remaining:
        return
    raise WaitingForPeople(
        _needed(progress),
        advice=f"rlhf annotate {job.run_folder}    then    rlhf run {job.run_folder}",
    )


def _needed(progress: Progress) -> str:
    if not progress.remaining:
        return f"all {progress.wanted:,} judgements are made"
    done, people = progress.wanted - progress.remaining, len(progress.annotators)
    made = f"{done:,} made, by {people} {'person' if people == 1 else 'people'}" if done else "none made yet"
    return f"{progress.remaining:,} of {progress.wanted:,} judgements are still needed ({made})"


def _import(job: Job, store: JudgementStore) -> int:
    """Ready-made preferences as a round of tasks judged by "import" users; a pair that repeats has several."""
    from rlhf_pipeline.data import read_preferences
    from rlhf_pipeline.exchange import JudgedRound, add_round
    from rlhf_pipeline.exchange.training import PairTasks
    from rlhf_pipeline.store.records import Form

    source = job.settings.data.preferences
    if source is None:
        raise ConfigError(
            "collect.judges is imported, but there is nothing to import",
            where="data.preferences",
            advice="set data.preferences, e.g. {path: preferences.jsonl}",
        )
    loaded = read_preferences(source, system=job.settings.data.system, report=job.report_on("preferences"))
    job.say(loaded.summary())
    different = [p for p in loaded.records if p.chosen != p.rejected]
    if same := len(loaded.records) - len(different):
        job.say(f"{same:,} left out: chosen and rejected are the same")
    pairs = PairTasks()
    for p in different:
        meta = {"source": p.source, "imported": dict(p.meta)} if p.meta or p.source else {}
        pairs.add(p.prompt, p.chosen, p.rejected, p.probability, p.margin, meta)
    made = JudgedRound("imported", digest([p.to_json() for p in loaded.records]), Form(), tuple(pairs.tasks()))
    with job.track("importing", len(different)) as advance:
        added = add_round(store, made, advance=advance)
    if added.round_id is None:
        raise DataError(
            f"none of {len(loaded.records):,} preferences compares two different responses", where=source.path
        )
    return added.round_id
