"""The command line: ``rlhf``. It imports a stage, the app or torch only inside the command that needs it."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

# Before any library is imported: none of them reports to anybody.
os.environ.update(
    HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", GRADIO_ANALYTICS_ENABLED="False", RAY_USAGE_STATS_ENABLED="0"
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from rlhf_pipeline import __version__
from rlhf_pipeline.allocator import give_back_freed_memory
from rlhf_pipeline.errors import PipelineError, UsageError, WaitingForPeople
from stages import judgements, users

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(judgements.app, name="judgements")
app.add_typer(users.app, name="users")
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, or a run folder that keeps one.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one key, e.g. -s sft.epochs=2.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rlhf-pipeline {__version__} (Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def rlhf(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """From a base model, prompts and people's judgements to an aligned chat model."""


@app.command()
def run(
    config: ConfigPath,
    stages: Annotated[
        list[str] | None, typer.Argument(metavar="[STAGE]...", help="Only these, and what they need.")
    ] = None,
    overrides: Overrides = None,
    again: Annotated[bool, typer.Option("--again", help="Make the named stages anew even where complete.")] = False,
) -> None:
    """Run what is missing or stale, in order; resume what was interrupted; stop where people are needed."""
    give_back_freed_memory()
    from stages import report as reporting
    from stages import runner, settings

    chosen = settings.load(config, overrides or [])
    quiet_libraries()
    run_folder = Path(chosen.run.folder)
    try:
        runner.run(chosen, stages or [], again=again)
    except WaitingForPeople as waiting:
        raise WaitingForPeople(waiting.what, details=_while_people_judge(run_folder)) from None
    page = reporting.build(chosen, run_folder)
    _say_what_next(run_folder, page)


@app.command()
def status(folder: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show the state of every stage, and why."""
    from stages import settings
    from stages.states import inspect

    chosen, unknown = settings.load_kept(_run_folder(folder))
    states = inspect(chosen, folder, unknown)
    if as_json:
        rows = {name: {"state": s.state, "reasons": list(s.reasons)} for name, s in states.items()}
        print(json.dumps({"run": str(folder), "unknown_keys": unknown, "stages": rows}, indent=2))
        return
    for name, s in states.items():
        made = f"{s.artifact.manifest.seconds:.0f} s, {s.artifact.digest[:12]}" if s.artifact else ""
        print(f"{name:10} {s.state:12} {made}")
        for reason in s.reasons[:5]:
            print(f"{'':10} {reason}")
    for line in _next_steps(folder, {s.state for s in states.values()}, unknown):
        print(line)


@app.command()
def annotate(
    folder: RunFolder,
    host: Annotated[str, typer.Option(help="Address to listen on; only this computer by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    public_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Address that browsers see, where a proxy with TLS stands before.")
    ] = None,
) -> None:
    """Serve the annotation app: people compare the sampled responses in a browser."""
    from stages import collect, settings

    chosen = settings.load_to_look(_run_folder(folder))
    round_id = collect.open_for_people(chosen, folder)
    if chosen.collect.judges != "people":
        print(
            f"note: this run learns from {chosen.collect.judges} judgements; what you judge is kept beside them, and\n"
            f"      learnt from with: {_command('run', folder)} --set collect.judges=people"
        )
    from annotation_ui.app import serve

    store_url = collect.store_url(chosen.collect, folder)
    serve(store_url, round_id, host=host, port=port, public_url=public_url, folder=folder)


@app.command()
def chat(
    folder: RunFolder,
    policies: Annotated[list[str] | None, typer.Argument(metavar="[POLICY]...", help="base, sft, dpo, ppo.")] = None,
    once: Annotated[str | None, typer.Option(help="Answer this and leave.")] = None,
) -> None:
    """Talk to one policy, or to several side by side."""
    from stages import chat as chatting
    from stages import settings

    quiet_libraries()
    chatting.chat(settings.load_to_look(_run_folder(folder)), folder, policies or [], once)


@app.command()
def report(folder: RunFolder) -> None:
    """Build report.html from whatever stages are there."""
    from stages import report as reporting
    from stages import settings

    print(reporting.build(settings.load_to_look(_run_folder(folder)), folder))


@app.command()
def score(
    folder: RunFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Prompts with responses, or pairs, in any format.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where scores go, as JSON lines.")] = None,
    format: Annotated[str, typer.Option(help="How rows are written; auto recognises it.")] = "auto",
    on_bad_rows: Annotated[
        str, typer.Option(help="error: name rows that cannot be read; drop: leave them out.")
    ] = "error",
) -> None:
    """Score a file of responses with the run's reward model."""
    from stages import score as scoring
    from stages import settings

    quiet_libraries()
    given = {"format": format, "on_bad_rows": on_bad_rows}
    scoring.score(settings.load_to_look(_run_folder(folder)), folder, file, out=out, **given)


@app.command()
def doctor(config: ConfigPath, overrides: Overrides = None) -> None:
    """Say what would fail, and the memory it will need, before anything is loaded."""
    from stages import doctor as checking
    from stages import settings

    quiet_libraries()
    raise typer.Exit(checking.check(settings.load(config, overrides or [])))


@app.command("help-config")
def help_config(
    section: Annotated[
        str | None,
        typer.Argument(metavar="[SECTION]", help="A section or key, e.g. sft or sft.lora; all when left out."),
    ] = None,
) -> None:
    """Print every key of the configuration with its default and meaning."""
    from rlhf_pipeline.config import describe
    from stages.settings import Settings

    rows = [row for row in describe(Settings) if section is None or f"{row[0]}.".startswith(f"{section}.")]
    if not rows:
        what = f"there is no section or key {section!r}"
        raise UsageError(what, advice=f"sections: {', '.join(Settings.model_fields)}; sft alone lists its keys")
    for key, default, text in rows:
        print(f"{key} = {default}\n    {' '.join(text.split())}")


def _run_folder(folder: Path) -> Path:
    if not (folder / "config.yaml").is_file():
        raise UsageError(
            "not a run folder: it has no config.yaml", where=str(folder), advice="rlhf run CONFIG makes one"
        )
    return folder


def _say_what_next(run_folder: Path, page: Path) -> None:
    print(f"\nreport:         {page}")
    if (run_folder / "sample").is_dir():
        print(f"judge by hand:  {_command('annotate', run_folder)}")
    if (run_folder / "sft").is_dir():
        print(f"talk to it:     {_command('chat', run_folder)}")


def _next_steps(folder: Path, states: set[str], unknown: list[str]) -> list[str]:
    """What to type after ``rlhf status``, as lines."""
    if unknown:
        return [
            f"\nthis version does not know {', '.join(unknown)}",
            f"  → take that out of {folder / 'config.yaml'} (or of your own file), then: {_command('run', folder)}",
        ]
    if "running" in states:
        return ["\na process is at work in this folder"]
    if "waiting" in states:
        return ["\nnext, as people are needed:", *(f"  {line}" for line in _while_people_judge(folder))]
    if "failed" in states:
        return [f"\nnext: mend what failed, then: {_command('run', folder)}    goes on from what was kept"]
    if states == {"complete"}:
        return [f"\neverything is complete; look at {folder / 'report.html'}, or: {_command('chat', folder)}"]
    return [f"\nnext: {_command('run', folder)}    does what is not complete, and nothing else"]


def _while_people_judge(folder: Path) -> list[str]:
    steps = (
        (_command("annotate", folder), "serves the page to judge on and prints its address; Ctrl+C ends it"),
        (_command("run", folder), "counts again, and goes on once enough is judged"),
    )
    width = max(len(command) for command, _ in steps)
    return [f"{number}. {command:{width}}    {text}" for number, (command, text) in enumerate(steps, start=1)]


def _command(name: str, folder: Path) -> str:
    """A command as it has to be typed here: under the name by which this program was called."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        called = "python -m stages"
    elif called == shutil.which("rlhf"):
        called = "rlhf"
    return f"{called} {name} {shlex.quote(str(folder))}"


def quiet_libraries() -> None:
    """Libraries' warnings are for their developers; ours say what a user can do."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name in ("transformers", "trl", "peft", "datasets", "accelerate", "torch", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Run a command; a user's mistake is a message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no arrows is no reason to stop
    try:
        app(prog_name="rlhf")
    except PipelineError as error:
        print(f"error: {error}" if error.exit_code != 3 else str(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        if leaving.code == 130:  # what typer makes of Ctrl+C
            print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise
    except Exception as error:
        if not _explain_disk(error):
            _report_bug(error)
        sys.exit(1)


def _explain_disk(error: Exception) -> bool:
    """Say what a file system refused, whichever library wrote; whether that was it."""
    import errno

    # safetensors and torch raise their own classes, with the system's words in them (torch's writer: a wrong position).
    full = re.search(r"No space left on device|Disk quota exceeded|inline_container\.cc.* unexpected pos", str(error))
    if not isinstance(error, OSError) and not full:
        return False
    number = errno.ENOSPC if full else error.errno if isinstance(error, OSError) else None
    what, where = str(error), ""
    if isinstance(error, OSError) and error.strerror:
        what, where = error.strerror, f"{error.filename}: " if error.filename else ""
    advice = "mend this and start the same command again: it goes on from here"
    if number in (errno.ENOSPC, errno.EDQUOT):
        what, advice = "the disk is full", "free some space and start the same command again: it goes on from here"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "give this user write access there, or name another folder: --set run.folder=FOLDER"
    print(f"error: {where}{what}\n  → {advice}", file=sys.stderr)
    return True


def _report_bug(error: Exception) -> None:
    """What we did not foresee: one line for the person, the traceback in a file for the report of it."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="rlhf-error-", suffix=".txt", delete=False, encoding="utf-8") as out:
        traceback.print_exception(error, file=out)
    first = str(error).strip().splitlines()
    print(f"error: {type(error).__name__}: {first[0] if first else 'no message'}", file=sys.stderr)
    print(f"  → this was not foreseen; the details for a bug report are in {out.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
