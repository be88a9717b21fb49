"""What a client asks for, checked: completions of texts, and answers in a chat."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptlab.data.chat.conversations import ROLES, Message
from gptlab.data.tokenizers.base import replace_surrogates
from gptlab.formats.opened import OpenedModel
from gptlab.generation.answers import check_prompt
from gptlab.generation.decoding import prompt_ids
from gptlab.generation.sampling import Sampling
from gptlab.serving.errors import ApiError
from gptlab.serving.fields import Fields, shown
from gptlab.system.errors import UserError, amount, did_you_mean

if TYPE_CHECKING:
    from gptlab.models import Model
    from gptlab.models.arrays import ArrayGPT

MOST_STOPS = 4
MOST_SAMPLES = 128
COMPLETION_TOKENS = 16  # of a completion that does not say how many, as OpenAI's
COMPLETION_LOG_PROBS, CHAT_LOG_PROBS = 5, 20  # how many of the likeliest tokens one may ask for


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most."""

    context_size: int
    """Tokens of a prompt and its answer."""
    max_tokens: int | None
    """Tokens of an answer; None: as many as the context has room for."""
    answers: int
    """Answers of one request, over all prompts."""


@dataclass(frozen=True)
class Request:
    """Answers that are wanted: `samples` for each prompt."""

    prompts: list[list[int]]
    texts: list[str]
    """The prompts as text, for `echo`."""
    max_tokens: int
    sampling: Sampling
    seed: int
    """Of the first sample of each prompt; the next one has seed + 1."""
    samples: int
    stops: tuple[str, ...]
    is_chat: bool
    echo: bool
    log_probs: int | None
    """How many of the likeliest tokens are wanted with their log-probabilities; None: no log-probabilities."""
    stream: bool
    include_usage: bool
    token_ids: bool = False
    """Whether the log-probabilities of a completion have the ids and bytes of the tokens, too."""


def completion_request(body: dict[str, Any], opened: OpenedModel[Model | ArrayGPT], limits: Limits) -> Request:
    """Return what a body of /v1/completions asks for.

    Raises:
        ApiError: a parameter is wrong, or cannot be honoured.
    """
    fields = Fields(body)
    fields.value("model")
    prompts, texts = read_prompts(fields, opened, limits)
    echo = fields.flag("echo")
    log_probs = fields.whole("logprobs", 0, COMPLETION_LOG_PROBS)
    token_ids = fields.flag("token_ids")
    if token_ids and log_probs is None:
        raise fields.refuse("token_ids", True, f"needs logprobs, from 0 to {COMPLETION_LOG_PROBS}")
    most = fields.whole("max_tokens", 0, 10**9, " (0 with echo only returns the prompt)")
    common = _common(fields, limits, len(prompts))
    best = fields.whole("best_of", 1, 10**9)
    if best is not None and best > common["samples"]:
        raise fields.refuse("best_of", best, f"must be at most n, {common['samples']}: leave it out")
    fields.end()
    length = _max_tokens("max_tokens", most, COMPLETION_TOKENS, "prompt", prompts, opened.name, limits)
    return Request(prompts, texts, length, echo=echo, log_probs=log_probs, is_chat=False, token_ids=token_ids, **common)


def chat_request(body: dict[str, Any], opened: OpenedModel[Model | ArrayGPT], limits: Limits) -> Request:
    """Return what a body of /v1/chat/completions asks for.

    Raises:
        ApiError: a parameter is wrong, or cannot be honoured, or the model has no chat format.
    """
    fields = Fields(body)
    fields.value("model")
    messages = _messages(fields)
    try:
        chat = opened.chat
        if chat is None:
            raise ApiError(
                400,
                f"{opened.name} has no chat format: it continues texts; use /v1/completions, or a model that was "
                f"fine-tuned to answer",
                "model",
                "no_chat_format",
            )
        for i, message in enumerate(messages):
            _check_text(opened, message.content, f"messages[{i}].content")
        ids = chat.prompt(messages).tolist()
    except UserError as error:
        raise ApiError(400, f"messages: {error}", "messages") from error
    wanted, likely = fields.flag("logprobs"), fields.whole("top_logprobs", 0, CHAT_LOG_PROBS)
    if likely is not None and not wanted:
        raise fields.refuse("top_logprobs", likely, "needs logprobs: true")
    most = fields.whole("max_completion_tokens", 1, 10**9)
    older = fields.whole("max_tokens", 1, 10**9)
    if most is not None and older is not None and most != older:
        raise fields.refuse("max_tokens", older, f"max_completion_tokens is {most}: leave one of them out")
    common = _common(fields, limits, 1)
    fields.end()
    name = "max_tokens" if most is None else "max_completion_tokens"
    length = _max_tokens(name, most or older, limits.context_size, "messages", [ids], opened.name, limits)
    log_probs = (likely or 0) if wanted else None
    return Request([ids], [""], length, echo=False, log_probs=log_probs, is_chat=True, **common)


def _common(fields: Fields, limits: Limits, prompts: int) -> dict[str, Any]:
    """Return what both kinds of request have."""
    samples = fields.whole("n", 1, MOST_SAMPLES)
    samples = 1 if samples is None else samples
    if samples * prompts > limits.answers:
        asked = f"{amount(prompts, 'prompt')} with n={samples}"
        raise ApiError(413, f"{asked}: a request may ask for {limits.answers:,} answers; send several", "n")
    temperature = fields.number("temperature", 1.0, 0, 100)
    top_p = fields.number("top_p", 1.0, 0, 1, above=True)
    top_k = fields.whole("top_k", 1, 10**9, "; leave it out to draw among all tokens")
    min_p = fields.number("min_p", 0.0, 0, 1)
    penalty = fields.number("repetition_penalty", 1.0, 0.01, 100)
    seed = fields.whole("seed", -(2**63), 2**63 - 1)
    stream = fields.flag("stream")
    options = fields.value("stream_options")
    include_usage = False
    if options is not None:
        if not isinstance(options, dict):
            raise fields.refuse("stream_options", options, "must be an object")
        if not stream:
            raise fields.refuse("stream_options", options, "needs stream: true")
        inner = Fields(options, "stream_options.")
        include_usage = inner.flag("include_usage")
        inner.flag("include_obfuscation")
        inner.end()
    return {
        "sampling": Sampling(penalty, temperature, top_k, top_p, min_p or None),
        "seed": secrets.randbits(32) if seed is None else seed,
        "samples": samples,
        "stops": fields.texts("stop", MOST_STOPS),
        "stream": stream,
        "include_usage": include_usage,
    }


def read_prompts(
    fields: Fields, opened: OpenedModel[Model | ArrayGPT], limits: Limits
) -> tuple[list[list[int]], list[str]]:
    """Return the prompts of a body as ids and as texts.

    Raises:
        ApiError: there is none, one has what the model does not know, or there are too many.
    """
    value = fields.value("prompt")
    must = "must be a text, a list of texts, a list of ids, or a list of lists of ids"
    if value is None or value == []:
        raise fields.refuse("prompt", value, must)
    several = value if isinstance(value, list) and type(value[0]) is not int else [value]
    if len(several) > limits.answers:
        raise ApiError(
            413, f"prompt: {len(several):,} prompts: at most {limits.answers:,}; send several requests", "prompt"
        )
    tokenizer, most = opened.tokenizer, limits.context_size
    longest = max(map(len, tokenizer.tokens))  # bytes
    prompts, texts = [], []
    for i, each in enumerate(several):
        name = "prompt" if several[0] is value else f"prompt[{i}]"
        if isinstance(each, str):
            text = replace_surrogates(each)
            if len(text) > most * longest:
                raise _too_long(f"{name} has {len(text):,} characters", opened.name, most, name)
            _check_text(opened, text, name)
            prompts.append(prompt_ids(tokenizer, text))
            texts.append(text)
        elif isinstance(each, list) and each and all(type(token) is int for token in each):
            if len(each) > most:
                raise _too_long(f"{name} has {len(each):,} tokens", opened.name, most, name)
            wrong = next((token for token in each if not 0 <= token < tokenizer.vocab_size), None)
            if wrong is not None:
                raise fields.refuse(name, wrong, f"ids go from 0 to {tokenizer.vocab_size - 1:,} for {opened.name}")
            prompts.append(each)
            texts.append(tokenizer.decode([token for token in each if token not in tokenizer.begin]))
        else:
            raise fields.refuse(name, each, must)
    return prompts, texts


def _check_text(opened: OpenedModel[Model | ArrayGPT], text: str, name: str) -> None:
    try:
        check_prompt(opened, text)
    except UserError as error:
        raise ApiError(400, f"{name}: {error}", name) from error


def _messages(fields: Fields) -> list[Message]:
    value = fields.value("messages")
    if not isinstance(value, list) or not value:
        raise fields.refuse("messages", value, "must be a list of at least one message, each with role and content")
    messages = [_message(fields, each, f"messages[{i}]") for i, each in enumerate(value)]
    if messages[-1].role == "assistant":
        last = f"messages[{len(messages) - 1}].role"
        raise fields.refuse(last, "assistant", "the last message must be the user's, which the model answers")
    return messages


def _message(fields: Fields, value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise fields.refuse(name, value, "must be an object with role and content")
    role = "system" if value.get("role") == "developer" else value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise fields.refuse(f"{name}.role", role, f"there is no such role; {did_you_mean(str(role)[:99], ROLES)}")
    for key, content in value.items():
        if key not in ("role", "content", "name", "refusal", "annotations") and content not in (None, [], {}):
            must = "cannot be honoured; give role and content only"
            raise fields.refuse(f"{name}.{replace_surrogates(key)[:99]}", content, must)
    content = value.get("content")
    if isinstance(content, list) and all(isinstance(each, dict) and each.get("type") == "text" for each in content):
        texts = [each.get("text") for each in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str) or not content:
        must = "must be a text that is not empty, or a list of parts of type text"
        raise fields.refuse(f"{name}.content", value.get("content"), must)
    return Message(role, replace_surrogates(content))


def _max_tokens(
    name: str, asked: int | None, default: int, source: str, prompts: list[list[int]], model: str, limits: Limits
) -> int:
    """Return the length of an answer, which fits into the context after each prompt.

    Args:
        name, asked: the parameter, and its value.
        default: the length where none is asked for.
        source: the parameter that the prompts come from.
    """
    longest = max(map(len, prompts))
    left = limits.context_size - longest
    if asked is None:
        most = left if limits.max_tokens is None else min(left, limits.max_tokens)
        if most < 1:
            said = f"the prompt has {longest:,} tokens, and an answer needs 1"
            raise _too_long(said, model, limits.context_size, source)
        return min(default, most)
    if limits.max_tokens is not None and asked > limits.max_tokens:
        raise ApiError(
            400, f"{name}: {shown(asked)}: the server was started with --max-tokens {limits.max_tokens}", name
        )
    if asked > left:
        said = f"the prompt has {longest:,} tokens and {name} is {asked:,}"
        raise _too_long(said, model, limits.context_size, name, max(left, 0))
    return asked


def _too_long(said: str, model: str, context_size: int, param: str, left: int | None = None) -> ApiError:
    way_out = "shorten the prompt" + (f", or ask for at most {left:,} tokens" if left else "")
    message = f"{said}: {model} has room for {context_size:,} tokens in all; {way_out}"
    return ApiError(400, message, param, "context_length_exceeded")
