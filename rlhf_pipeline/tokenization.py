"""The one seam between text and token ids: every stage tokenises here, so that all of them see the same ids.

What it guarantees, for every row and not on average:
- the ids of a prompt are an exact prefix of the ids of the prompt with its response;
- a response ends with the token that ends a turn, and nothing stands after it;
- padding is never the end token, and never a token that text can contain;
- what people type cannot become a control token: ``<|im_end|>`` inside a message is encoded as plain characters.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_pipeline.config import ModelConfig
from rlhf_pipeline.errors import ModelError
from rlhf_pipeline.model_source import first_line, load_config, model_folder
from rlhf_pipeline.records import Message
from rlhf_pipeline.special_tokens import choose_pad, declared_ends, ids_of, text_of, vocabulary_digest

# A transcript from tokens that every model has. The space after "Assistant:" belongs to the response, as byte-pair
# encodings tie it to the first word.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content | trim }}\n\n"
    "{% elif message.role == 'user' %}User: {{ message.content | trim }}\n\n"
    "{% else %}Assistant: {{ message.content | trim }}{{ eos_token }}\n\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# Private-use characters around what must not become a control token; removed from all input first.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
# A template that prints today's date would give other ids tomorrow. The date is the one of Llama 3's own default. It is
# a macro over transformers' function of the same name, because transformers lets no function through to a template.
_DAY = {"%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%A": "Friday", "%a": "Fri"}
_TIME = {"%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM", "%j": "208"}
_FROZEN_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('{code}', '{text}')" for code, text in {**_DAY, **_TIME}.items())
    + " }}{%- endmacro -%}"
)
_RENDERING_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer with its chat template, end, stop and padding tokens settled.

    ``end_id`` ends a response in training, ``stop_ids`` (which contain it) end one in sampling, ``pad_id`` is never
    ``end_id``. The tokenizer itself is left as it was loaded: saving one whose pad token was set makes an added token
    of it, and then text that contains it is encoded differently.
    """

    tokenizer: PreTrainedTokenizerBase
    end_id: int
    stop_ids: frozenset[int]
    pad_id: int
    template: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    merges_system: bool = False
    """The template refuses or drops system turns: their text is put before that of the first user turn."""

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation that waits for the assistant.

        Raises:
            ModelError: the template refuses the conversation.
        """
        return self._encode(self._render(messages, waiting=True))

    def encode_response(self, messages: Sequence[Message], response: str, *, ended: bool = True) -> list[int]:
        """Ids that continue ``encode_prompt(messages)``; the last is ``end_id``, unless the response was cut off.

        Raises:
            ModelError: the template refuses the conversation, or renders the prompt differently before a response.
        """
        start = self._render(messages, waiting=True)
        whole = self._render([*messages, Message("assistant", response)], waiting=False)
        if not whole.startswith(start):
            raise _not_a_prefix(start, whole)
        prompt, ids = self._encode(start), self._encode(whole)
        # A merge over the boundary (two newlines, say) breaks the prefix; the boundary wins, as sampling starts there.
        merged = ids[: len(prompt)] != prompt
        ids = self._encode(whole[len(start) :], after_text=True) if merged else ids[len(prompt) :]
        ids = ids[: ids.index(self.end_id)] if self.end_id in ids else self._without_trailing_space(ids)
        return ids if ids and not ended else [*ids, self.end_id]

    def encode(self, messages: Sequence[Message], response: str, *, ended: bool = True) -> list[int]:
        """Ids of a conversation with a response, as :meth:`encode_prompt` and :meth:`encode_response` give them."""
        return self.encode_prompt(messages) + self.encode_response(messages, response, ended=ended)

    def with_plain_template(self) -> ChatTokenizer | None:
        """The same tokenizer with the template of base models; None where it is that already, or cannot have it."""
        end_id = self.tokenizer.eos_token_id
        if end_id is None or PLAIN_TEMPLATE in self.template:
            return None
        return replace(self, template=PLAIN_TEMPLATE, arguments={}, merges_system=False, end_id=int(end_id))

    def newline_ids(self) -> list[int]:
        """Ids of a newline after text."""
        return self._encode_piece("\n", True)

    def decode_response(self, ids: Sequence[int]) -> str:
        """The text of a response, without its stop token, whatever stands after it, and other control tokens."""
        stop = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = self.tokenizer.decode(list(ids[:stop]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def identity(self) -> dict[str, Any]:
        """What artifacts must agree on: ``{"tokenizer": sha256, "chat_template": sha256, "eos": [stop ids]}``."""
        template = json.dumps([self.template, sorted(self.arguments.items())])
        return {
            "tokenizer": vocabulary_digest(self.tokenizer),
            "chat_template": hashlib.sha256(template.encode()).hexdigest(),
            "eos": sorted(self.stop_ids),
        }

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that only the template may write: special tokens, and added tokens that stand in the template."""
        return frozenset(
            i
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or (not token.content.isspace() and token.content in self.template)
        )

    @functools.cached_property
    def _control_text(self) -> re.Pattern[str]:
        texts = [self.tokenizer.added_tokens_decoder[i].content for i in self.control_ids]
        return re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True)) or "(?!)")

    @functools.cached_property
    def _marked(self) -> re.Pattern[str]:
        return re.compile(f"{_OPEN}({self._control_text.pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]")

    def _render(self, messages: Sequence[Message], waiting: bool) -> str:
        rows = [{"role": m.role, "content": self._mark(m.content)} for m in messages]
        if self.merges_system:
            rows = _merge_system(rows)
        try:
            return render(self.tokenizer, self.template, rows, waiting, self.arguments)
        except _RENDERING_ERRORS as error:
            roles = " → ".join(m.role for m in messages)
            raise ModelError(
                f"the chat template refuses a conversation ({roles}): {error}",
                where="model.chat_template",
                advice="mend the conversation (user and assistant in turns), or set model.chat_template: plain",
            ) from None

    def _mark(self, content: str) -> str:
        if not content.isascii():
            content = content.replace(_OPEN, "").replace(_CLOSE, "")
            content = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._control_text.sub(f"{_OPEN}\\g<0>{_CLOSE}", content)

    def _encode(self, text: str, after_text: bool = False) -> list[int]:
        ids: list[int] = []
        # Splitting at the marks gives [text, control text, text, …, text]; a lone mark (a template that splits
        # strings left it) gives None.
        for place, piece in enumerate(self._marked.split(text)):
            if piece:
                ids += (
                    self._encode_literally(piece) if place % 2 else self._encode_piece(piece, after_text or place > 0)
                )
        return ids

    def _encode_piece(self, text: str, after_text: bool) -> list[int]:
        if not after_text:
            return ids_of(self.tokenizer, text)
        # SentencePiece puts a space before whatever comes first, so something else, which does not merge, has to.
        for anchor in ("\n", "a", "."):
            before = ids_of(self.tokenizer, anchor)
            ids = ids_of(self.tokenizer, anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return ids_of(self.tokenizer, text)

    def _encode_literally(self, text: str) -> list[int]:
        """A control token's text as plain characters: no proper part of it is a control token's text."""
        for cut in range(1, len(text)):
            ids = self._encode_piece(text[:cut], True) + self._encode_piece(text[cut:], True)
            if self.control_ids.isdisjoint(ids):
                return ids
        raise ModelError(
            f"the tokenizer has no plain encoding of {text!r}, which a message contains and which steers the model",
            where="model.name",
            advice="remove it from the data",
        )

    def _without_trailing_space(self, ids: list[int]) -> list[int]:
        while ids and not text_of(self.tokenizer, ids[-1]).strip() and ids[-1] not in self.control_ids:
            ids = ids[:-1]
        return ids


def load_tokenizer(model: ModelConfig) -> ChatTokenizer:
    """The base's tokenizer, with everything about it proven on an example.

    Raises:
        ModelError: no tokenizer, template or end token, a template that cannot be used, ids beyond the model's.
    """
    folder = model_folder(model)
    where = f"model.name: {model.name}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise ModelError(
            f"its tokenizer cannot be loaded: {first_line(error)}", where=where, advice="fetch its files again"
        ) from None
    _require_fitting_vocabulary(tokenizer, load_config(model).get_text_config().vocab_size, where)
    template = _choose_template(model, tokenizer)
    for name in model.template_arguments:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ModelError(
                f"the chat template reads no argument {name!r}",
                where="model.template_arguments",
                advice="remove it or mend its spelling",
            )
    draft = ChatTokenizer(
        tokenizer=tokenizer,
        end_id=-1,
        stop_ids=frozenset(),
        pad_id=-1,
        template=template,
        arguments=dict(model.template_arguments),
        merges_system=_refuses_system(tokenizer, template, model.template_arguments),
    )
    end_id = _end_of_turn(draft, model)
    stop_ids = frozenset({end_id, *declared_ends(tokenizer, folder)})
    pad_id = choose_pad(tokenizer, end_id, stop_ids, where)
    return ChatTokenizer(tokenizer, end_id, stop_ids, pad_id, template, draft.arguments, draft.merges_system)


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    rows: Sequence[Mapping[str, str]],
    waiting: bool,
    arguments: Mapping[str, Any],
) -> str:
    """A conversation as the template writes it; ``waiting`` asks for the start of the assistant's turn."""
    text = tokenizer.apply_chat_template(
        [dict(row) for row in rows],
        chat_template=_FROZEN_CLOCK + template if "strftime_now" in template else template,
        add_generation_prompt=waiting,
        tokenize=False,
        **arguments,
    )
    return str(text)


def _require_fitting_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> None:
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"the tokenizer has ids up to {highest}, the model has embeddings for 0 to {rows - 1} only",
            where=where,
            advice="tokenizer and weights come from different models: take both from the same one",
        )


def _choose_template(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    if model.chat_template == "plain":
        bos = tokenizer.bos_token or ""
        starts_with_bos = bool(bos) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        return ("{{ bos_token }}" if starts_with_bos else "") + PLAIN_TEMPLATE
    if model.chat_template is not None:
        path = Path(model.chat_template).expanduser()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ModelError(
                f"the template {path} cannot be read: {reason}",
                where="model.chat_template",
                advice="null for the model's own, plain for a transcript, or the path of a Jinja file",
            ) from None
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ModelError(
            "the tokenizer has no chat template (a base model, probably)",
            where="model.chat_template",
            advice="model.chat_template: plain writes a transcript with tokens that exist, or give a Jinja file",
        )
    return str(template)


def _refuses_system(tokenizer: PreTrainedTokenizerBase, template: str, arguments: Mapping[str, Any]) -> bool:
    user = {"role": "user", "content": "Alpha"}
    try:
        render(tokenizer, template, [user], True, arguments)
    except _RENDERING_ERRORS as error:
        raise ModelError(
            f"the chat template cannot be used: {error}",
            where="model.chat_template",
            advice="give another: model.chat_template: plain, or the path of a Jinja file",
        ) from None
    try:
        shown = render(tokenizer, template, [{"role": "system", "content": "Omega"}, user], True, arguments)
    except _RENDERING_ERRORS:
        return True
    return "Omega" not in shown


def _merge_system(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """System text before the text of the first user turn, as Gemma's authors advise."""
    system = [row["content"] for row in rows if row["role"] == "system"]
    others = [row for row in rows if row["role"] != "system"]
    if not system or not others:
        return rows
    first = {**others[0], "content": "\n\n".join([*system, others[0]["content"]])}
    return [first, *others[1:]]


def _end_of_turn(draft: ChatTokenizer, model: ModelConfig) -> int:
    """Render an example, prove the boundary, and read off the token that ends the assistant's turn."""
    question, answer = (Message("user", "Alpha"), Message("assistant", "Omega"))
    start = draft._render([question], waiting=True)
    whole = draft._render([question, answer], waiting=False)
    if not whole.startswith(start):
        raise _not_a_prefix(start, whole)
    before, found, after = whole[len(start) :].partition(answer.content)
    if not found:
        raise ModelError(
            "the chat template leaves out the assistant's text",
            where="model.chat_template",
            advice="give one that writes every turn, or model.chat_template: plain",
        )
    if before.strip():
        advice = "give a template that writes the start of the assistant's turn when add_generation_prompt is true"
        if "enable_thinking" in draft.template and "enable_thinking" not in model.template_arguments:
            advice = "model.template_arguments: {enable_thinking: false}"
        raise ModelError(
            f"the chat template puts {before!r} between the prompt and the response, which sampling would not",
            where="model.chat_template",
            advice=advice,
        )
    tokenizer = draft.tokenizer
    added = set(tokenizer.added_tokens_decoder)
    ends = [i for i in draft._encode(after, after_text=True) if i in added and text_of(tokenizer, i).strip()]
    if ends:
        return int(ends[0])
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "neither the chat template nor the tokenizer ends a turn with a token, so no policy could learn to stop",
            where="model.chat_template",
            advice="give a template that ends the assistant's turn with a special token",
        )
    return int(tokenizer.eos_token_id)


def _not_a_prefix(start: str, whole: str) -> ModelError:
    same = next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(whole))
    near = max(0, same - 30)
    return ModelError(
        "the chat template renders the prompt alone differently from the prompt with a response, so training and "
        "sampling would not see the same ids",
        where="model.chat_template",
        details=[
            f"alone:           …{start[near:][:80]!r}",
            f"with a response: …{whole[near:][:80]!r}",
        ],
        advice="a template argument may switch it off (Qwen3: model.template_arguments: {enable_thinking: false}); "
        "else give a template of your own: model.chat_template: FILE.jinja",
    )
