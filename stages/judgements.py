"""``rlhf judgements``: a round's judgements to a file that other programs read, and theirs into the store.

rlhf judgements rounds RUN
rlhf judgements export RUN --format trl --out preferences.jsonl
rlhf judgements import RUN annotations.json
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf_pipeline.errors import DataError, UsageError

if TYPE_CHECKING:
    from rlhf_pipeline.exchange import Export
    from rlhf_pipeline.store import JudgementStore
    from rlhf_pipeline.store.records import Round
    from stages.settings import Settings

SUFFIXES = (".jsonl", ".json")

app = typer.Typer(no_args_is_help=True, help="Judgements out of a run's store and into it.")
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
RoundNumber = Annotated[int | None, typer.Option("--round", metavar="N", help="Number of a round; see `rounds`.")]


@app.command("rounds")
def list_rounds(folder: RunFolder) -> None:
    """List the rounds of a run's store with what they hold."""
    with _store(folder, must_exist=True) as (store, _):
        rows = [_described(store, found) for found in store.rounds()]
    print("\n".join(rows) if rows else "no rounds: nothing has been given out to be judged or imported")


@app.command("export")
def export_round(
    folder: RunFolder,
    format: Annotated[str, typer.Option("--format", "-f", help=(
        "full, trl, trl-implicit, kto, hh, openai, argilla, argilla-flat or label-studio."
    ))],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .jsonl or .json file to write.")],
    number: RoundNumber = None,
    min_margin: Annotated[float | None, typer.Option(help=(
        "Training formats: leave out pairs whose mean margin is below, or that have none."
    ))] = None,
    min_probability: Annotated[float, typer.Option(min=0.5, max=1.0, help=(
        "Training formats: leave out pairs on which a smaller share of the votes agrees."
    ))] = 0.5,
    corrections: Annotated[bool, typer.Option(help=(
        "Training formats: a corrected response makes a pair with the original."
    ))] = True,
    drop_flagged: Annotated[bool, typer.Option("--drop-flagged", help=(
        "Training formats: leave out tasks that somebody flagged."
    ))] = False,
) -> None:  # fmt: skip
    """Write the judgements of a round, with pseudonyms for names and a manifest beside the file.

    Training formats count votes as the run's collect.votes says.
    """
    from rlhf_pipeline.exchange import Pseudonyms, Terms, export, find_format, read_round, read_salt, salt_beside, write
    from stages.labels import counting

    known = find_format(format)
    _check_out(out, as_list=known.as_list)
    if not known.for_training and (min_margin is not None or min_probability > 0.5 or not corrections or drop_flagged):
        raise UsageError(
            f"{format} holds single judgements: no pairs are decided that could be left out",
            advice="leave out --min-margin, --min-probability, --no-corrections and --drop-flagged",
        )
    if min_margin is not None and not math.isfinite(min_margin):
        raise UsageError(f"--min-margin is {min_margin}, wanted a number")
    with _store(folder, must_exist=True) as (store, settings):
        terms = _chosen(store, number, settings.collect.judges)
        names = Pseudonyms(read_salt(salt_beside(_location(settings, folder), folder)))
        judged = read_round(store, terms.id, names)
        wanted = Terms(min_margin, min_probability, corrections, drop_flagged, counting(settings.collect.votes))
        made = export(judged, format, wanted, salt_digest=names.salt_digest)
        where = f"round {terms.number} ({terms.name})"
    found = made.manifest["found"]
    if not made.manifest["rows"]:
        raise DataError(
            f"there is nothing to write: no row came of the {found['judgements']:,} judgements of {where}",
            details=_left_out(made),
            advice="export another round (rlhf judgements rounds RUN), or judge more of this one",
        )
    paths = write(made, out)
    tasks = found["tasks"] - found["tasks_without_judgements"]
    print(
        f"{_many(made.manifest['rows'], 'row')} ({format}) of {where}: {_many(found['judgements'], 'judgement')} "
        f"of {_many(tasks, 'task')} by {_many(found['people'], 'judge')}"
    )
    for line in _left_out(made):
        print(f"  left out: {line}")
    for path in paths:
        print(f"  wrote {path}")


@app.command("import")
def import_file(
    folder: RunFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of judgements; .gz may be packed.")],
    format: Annotated[str | None, typer.Option("--format", "-f", help="Its format; recognised if not given.")] = None,
    number: RoundNumber = None,
) -> None:
    """Add the judgements of a file to a run's store: as a round of its own, or to the round that --round names."""
    from rlhf_pipeline.exchange import add_round, read_file

    read = read_file(file, format)
    print(f"format: {read.format}; {_many(read.rows, 'row')}")
    for reason, count in read.left_out.items():
        print(f"  left out: {count:,} {reason}")
    with _store(folder, must_exist=False) as (store, settings):
        into = None if number is None else _chosen(store, number, settings.collect.judges).id
        for judged in read.rounds:
            added = add_round(store, judged, into=into)
            known = f"; {added.known:,} were there already" if added.known else ""
            print(
                f"{_many(added.judgements, 'judgement')} by {_many(added.people, 'judge')}, "
                f"{_many(added.tasks, 'new task')}{known}"
            )
            if added.round_id is not None:
                last = store.round(added.round_id)
                print(f"  {_described(store, last)}")
                print(
                    f"  as pairs: rlhf judgements export {folder} --round {last.number} --format trl --out pairs.jsonl"
                )


def _location(settings: Settings, folder: Path) -> str:
    from stages.collect import store_url

    return store_url(settings.collect, folder)


@contextmanager
def _store(folder: Path, *, must_exist: bool) -> Iterator[tuple[JudgementStore, Settings]]:
    """The store of a run, and the run's settings."""
    from rlhf_pipeline.store import JudgementStore
    from stages import settings

    if not (folder / "config.yaml").is_file():
        raise UsageError(
            "not a run folder: it has no config.yaml", where=str(folder), advice="rlhf run CONFIG makes one"
        )
    chosen = settings.load_to_look(folder)
    location = _location(chosen, folder)
    if must_exist and "://" not in location and not Path(location).is_file():
        raise UsageError(
            "there are no judgements yet: this run has no store",
            where=location,
            advice=f"rlhf run {folder} collect, or rlhf judgements import {folder} FILE",
        )
    store = JudgementStore.open(location)
    try:
        yield store, chosen
    finally:
        store.close()


def _chosen(store: JudgementStore, number: int | None, judges: str) -> Round:
    """The round of this number; without one the only round, or the newest that the run itself opened."""
    rounds = store.rounds()
    own = [found for found in rounds if found.name == judges]
    if number is not None:
        fitting = [found for found in rounds if found.number == number]
    else:
        fitting = rounds if len(rounds) == 1 else own[-1:]
    if fitting:
        return fitting[0]
    raise UsageError(
        "this store has no rounds" if not rounds else f"there is no round {number}" if number else "which round?",
        details=[_described(store, found) for found in rounds],
        advice="name one with --round N" if rounds else "nothing has been given out to be judged, or imported",
    )


def _described(store: JudgementStore, found: Round) -> str:
    judgements = store.judgements(found.id)
    people = len({row.user_id for row in judgements})
    tasks = len(store.tasks(found.id))
    return (
        f"round {found.number} ({found.name}): {_many(len(judgements), 'judgement')} by {_many(people, 'judge')}, "
        f"{_many(tasks, 'task')} of the kind {found.form.kind}"
    )


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _check_out(out: Path, *, as_list: bool) -> None:
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"the name ends in {out.suffix or 'no suffix'!r}", where=str(out), advice="name it FILE.jsonl")
    if as_list and out.suffix.lower() == ".jsonl":
        raise UsageError("this format is one JSON list, not a row a line", where=str(out), advice="name it FILE.json")
    if not out.parent.is_dir():
        raise UsageError("there is no such folder", where=str(out.parent), advice=f"mkdir -p {out.parent}")
    ours = out.with_name(out.name + ".manifest.json")
    if out.exists() and not ours.is_file():
        raise UsageError(
            "the file exists, and no manifest beside it says that it is an export", where=str(out),
            advice="name another file, or remove this one",
        )  # fmt: skip


def _left_out(made: Export) -> list[str]:
    rules: list[dict[str, Any]] = made.manifest["rules"]
    return [f"{_many(rule['removed'], rule['of'][:-1])}: {rule['because']}" for rule in rules if rule["removed"]]
