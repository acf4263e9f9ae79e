"""Talk to a policy in the terminal, or to several side by side.

rlhf chat RUN [POLICY …]
"""

from __future__ import annotations

import contextlib
import shlex
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_pipeline import artifacts
from rlhf_pipeline.errors import UsageError
from rlhf_pipeline.records import Message
from stages.job import say
from stages.policies import BASE, REFERENCE, Policies

if TYPE_CHECKING:
    from stages.settings import Settings

BEST_FIRST = ("ppo", "dpo", "sft", BASE)
HELP = """\
/new               forget the conversation
/system TEXT       begin anew with a system message (none: without one)
/temperature X     0 takes the likeliest token, 1 samples the policy as it was trained
/quit              leave (as does Ctrl-D)"""
_NARROWEST = 30  # columns of the terminal below which responses stand one under the other


@dataclass(frozen=True)
class Answer:
    """A response, whether it ended by itself, and how many of the oldest messages the policy no longer saw."""

    text: str
    ended: bool = True
    dropped: int = 0

    def shown(self) -> str:
        """As it may be printed on a terminal."""
        return printable(self.text) + ("" if self.ended else " …")


Answerer = Callable[[str, Sequence[Message], float], Answer]


@dataclass
class Talk:
    """The conversations, one for each policy: all hear the same person, each remembers its own responses.

    Args:
        answer: gives a policy's answer to a conversation at a temperature.
        names: the policies, in the order in which they are shown.
        temperature: divides the logits.
    """

    answer: Answerer
    names: Sequence[str]
    temperature: float
    system: str = ""
    histories: dict[str, list[Message]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was said; a system message stays."""
        start = [Message("system", self.system)] if self.system else []
        self.histories = {name: list(start) for name in self.names}

    def turn(self, text: str) -> dict[str, Answer]:
        """One turn of the person: every policy's answer. A turn that fails or is broken off leaves no trace."""
        asked = {name: [*history, Message("user", text)] for name, history in self.histories.items()}
        answers = {name: self.answer(name, asked[name], self.temperature) for name in self.names}
        self.histories = {name: [*asked[name], Message("assistant", answers[name].text)] for name in self.names}
        return answers

    def command(self, line: str) -> str | None:
        """Carry out a line that begins with a slash and say what was done; null to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/quit", "/exit"):
            return None
        if name == "/new":
            self.restart()
            return "a new conversation"
        if name == "/system":
            self.system = rest
            self.restart()
            return "a new conversation, " + ("with that system message" if rest else "without a system message")
        if name == "/temperature":
            with contextlib.suppress(ValueError):
                if 0 <= float(rest) < 100:
                    self.temperature = float(rest)
                    return f"temperature {self.temperature:g}"
            return f"a temperature is a number from 0 up, such as 0.7; it stays {self.temperature:g}"
        return HELP if name == "/help" else f"{name} is no command\n{HELP}"


def chat(settings: Settings, run_folder: Path, policies: Sequence[str], once: str | None) -> None:
    """Talk until /quit or the end of input; or answer ``once`` and return.

    Raises:
        UsageError: the run has no such policy (yet), or the prompt of ``once`` is too long or empty.
    """
    if once is not None and not once.strip():
        raise UsageError("there is nothing to answer", where="--once", advice="--once 'How do I water a fern?'")
    names = _choose(list(policies), run_folder)
    answer = _answerer(settings, run_folder, names)
    talk = Talk(answer, names, settings.evaluate.temperature)
    if once is not None:
        for name, given in talk.turn(once).items():
            say(given.shown() if len(names) == 1 else f"{name}:\n{given.shown()}\n")
        return
    say(f"talking to {', '.join(names)} of {run_folder}; /help lists the commands")
    _converse(talk)


def printable(text: str) -> str:
    """Without control characters: a policy must not be able to steer the terminal. Joiners, as in emoji, stay."""
    return "".join(
        c for c in text if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")
    )


def fit(
    encode: Callable[[Sequence[Message]], Sequence[int]], messages: Sequence[Message], room: int
) -> tuple[list[int], int]:
    """Token ids of a conversation, without as many of the oldest messages as do not fit, and how many those are.

    The system message and the last user message stay; what is left always begins with a user message.

    Raises:
        UsageError: even these two do not fit.
    """
    system = [m for m in messages[:1] if m.role == "system"]
    turns = list(messages[len(system) :])
    for dropped in range(0, len(turns), 2):
        ids = list(encode([*system, *turns[dropped:]]))
        if len(ids) <= room:
            return ids, dropped
    raise UsageError(
        f"that is too long: {len(ids)} tokens, and the model has room for {max(room, 0)} beside its response",
        advice="say it in fewer words",
    )


def _choose(wanted: list[str], run_folder: Path) -> list[str]:
    """The named policies, or the best there is."""
    there = [n for n in BEST_FIRST if n == BASE or (run_folder / n / artifacts.MANIFEST).is_file()]
    for name in (n for n in wanted if n not in there):
        advice = f"there is {', '.join(there)}"
        if name in BEST_FIRST:
            advice += f"; to make it: rlhf run {shlex.quote(str(run_folder))} {name}"
        raise UsageError(f"this run has no policy {name!r}", where=str(run_folder), advice=advice)
    return list(dict.fromkeys(wanted)) or there[:1]


def _answerer(settings: Settings, run_folder: Path, names: Sequence[str]) -> Answerer:
    """The models behind the names, checked and loaded; every answer has a seed of its own."""
    import torch

    from rlhf_pipeline.generation import generate
    from rlhf_pipeline.models import base_identity
    from rlhf_pipeline.tokenization import load_tokenizer

    tokenizer = load_tokenizer(settings.model)
    # SFT belongs to it whoever speaks: it may be a full model, on which the other adapters rest.
    needed = dict.fromkeys([*(n for n in names if n != BASE), REFERENCE] if any(n != BASE for n in names) else [])
    opened = {name: artifacts.open_artifact(run_folder / name) for name in needed}
    if opened:
        base = base_identity(settings.model)
        for artifact in opened.values():
            artifacts.require_same_identity(artifact, base, tokenizer.identity())
    device = "cuda" if settings.run.device != "cpu" and torch.cuda.is_available() else "cpu"
    policies = Policies(settings.model, {n: a.folder for n, a in opened.items()}, device=device, keep=True)
    for name in names:  # now, not in the middle of the first turn
        with policies.use(name):
            pass
    asked = dict.fromkeys(names, 0)

    def answer(name: str, messages: Sequence[Message], temperature: float) -> Answer:
        asked[name] += 1
        with policies.use(name) as model:
            context = getattr(model.config.get_text_config(), "max_position_embeddings", 4096)
            new = min(settings.evaluate.max_new_tokens, context // 2)
            ids, dropped = fit(tokenizer.encode_prompt, messages, context - new)
            [sampled] = generate(
                model,
                [ids],
                stop_ids=tokenizer.stop_ids,
                pad_id=tokenizer.pad_id,
                max_new_tokens=new,
                temperature=temperature,
                seed=settings.run.seed + asked[name],
            )
        return Answer(tokenizer.decode_response(sampled.ids), sampled.ended, dropped)

    return answer


def _converse(talk: Talk) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() then has line editing and history)
    while True:
        try:
            line = input("\nyou: ").strip()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("\n(/quit or Ctrl-D leaves)")
            continue
        if not line:
            continue
        if line.startswith("/"):
            done = talk.command(line)
            if done is None:
                return
            say(done)
            continue
        try:
            _show(talk.turn(line))
        except KeyboardInterrupt:
            say("\n(broken off; what you said is forgotten)")
        except UsageError as error:
            say(str(error))


def _show(answers: Mapping[str, Answer]) -> None:
    """One response plainly; several in columns where the terminal is wide enough, else one under the other."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for name, given in answers.items():
        if given.dropped:
            forgotten = f"({name} no longer sees the first {given.dropped} messages: its context is full)"
            console.print(Text(forgotten, style="dim"))
    if len(answers) == 1 or console.width < _NARROWEST * len(answers):
        for name, given in answers.items():
            console.print(Text.assemble((f"\n{name}: ", "bold"), given.shown()))
        return
    columns = Table(expand=True, show_edge=False, box=None, padding=(0, 3, 0, 0))
    for name in answers:
        columns.add_column(name, ratio=1, overflow="fold")
    columns.add_row(*(Text(given.shown()) for given in answers.values()))
    console.print()
    console.print(columns)
