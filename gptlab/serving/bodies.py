"""The bodies of responses, as OpenAI's clients read them."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Sequence
from typing import Any

from gptlab.data.tokenizers import Tokenizer
from gptlab.serving.engine import Part, Token
from gptlab.serving.requests import Request

REASONS = {"stop": "stop", "end_of_text": "stop", "length": "length"}


class Bodies:
    """Makes the bodies of one response, as a whole or in chunks.

    Args:
        request: what is asked for.
        model: the model's name.
        tokenizer: the model's.
    """

    def __init__(self, request: Request, model: str, tokenizer: Tokenizer) -> None:
        self.request, self.tokenizer = request, tokenizer
        kind, self.object = ("chatcmpl", "chat.completion") if request.is_chat else ("cmpl", "text_completion")
        self.head = {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "seed": request.seed,
        }
        self.choices = [
            Choice(request, i, texts, tokenizer)
            for i, texts in enumerate(text for text in request.texts for _ in range(request.samples))
        ]
        self.drawn = [0] * len(self.choices)

    def whole(self, parts: Sequence[Part]) -> dict[str, Any]:
        """Return the one body of a response, from the one part of each choice."""
        choices = [choice.body(part) for choice, part in zip(self.choices, parts, strict=True)]
        self.drawn = [part.drawn for part in parts]
        return {**self.head, "object": self.object, "choices": choices, "usage": self.usage()}

    def chunk(self, index: int, part: Part) -> dict[str, Any]:
        """Return a chunk of a response for a part of a choice."""
        self.drawn[index] = part.drawn
        return self._chunk([self.choices[index].body(part)])

    def last(self) -> dict[str, Any]:
        """Return the chunk that has the usage figures, and no choices."""
        return self._chunk([]) | {"usage": self.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = "chat.completion.chunk" if self.request.is_chat else self.object
        usage = {"usage": None} if self.request.include_usage else {}
        return {**self.head, "object": name, "choices": choices, **usage}

    def usage(self) -> dict[str, int]:
        """Return how many tokens were read and drawn; each prompt counts once."""
        read, drawn = sum(map(len, self.request.prompts)), sum(self.drawn)
        return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}


class Choice:
    """Makes the objects of one choice."""

    def __init__(self, request: Request, index: int, text: str, tokenizer: Tokenizer) -> None:
        self.request, self.index, self.tokenizer = request, index, tokenizer
        self.echo = text if request.echo else ""
        self.begun = False
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.offset = 0 if request.echo else len(text)  # characters before the next token

    def body(self, part: Part) -> dict[str, Any]:
        """Return the object for a part, the first of which has the prompt where that is to be echoed."""
        text = self.echo + part.text
        reason = None if part.finish is None else REASONS[part.finish]
        found: dict[str, Any] = {"index": self.index, "finish_reason": reason, "logprobs": None}
        if not self.request.is_chat:
            found["text"] = text
            if self.request.log_probs is not None:
                found["logprobs"] = self._completion_log_probs(part.tokens)
        else:
            if self.request.log_probs is not None:
                found["logprobs"] = {"content": [self._token(token) for token in part.tokens], "refusal": None}
            role = {} if self.begun else {"role": "assistant"}
            if self.request.stream:
                found["delta"] = {**role, "content": text}
            else:
                found["message"] = {**role, "content": text, "refusal": None}
        self.echo, self.begun = "", True
        return found

    def _completion_log_probs(self, tokens: list[Token]) -> dict[str, Any]:
        likely = [self._likely(token) for token in tokens]
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": likely if self.request.log_probs else None,
            "text_offset": [self._move(token.id) for token in tokens],
            **({"content": [self._token(token) for token in tokens]} if self.request.token_ids else {}),
        }

    def _likely(self, token: Token) -> dict[str, float] | None:
        """Return the likeliest tokens, and the token itself, with the log-probability of each."""
        if token.log_prob is None:
            return None
        return {self._name(each): number for each, number in [*token.likely, (token.id, token.log_prob)]}

    def _move(self, token: int) -> int:
        """Return where a token begins in the text, in characters, and go on behind it."""
        begin = self.offset
        if token not in self.tokenizer.begin:
            self.offset += len(self.decoder.decode(self.tokenizer.tokens[token]))
        return begin

    def _token(self, token: Token) -> dict[str, Any]:
        return {
            **self._named(token.id, token.log_prob),
            "top_logprobs": [self._named(each, number) for each, number in token.likely],
        }

    def _named(self, token: int, number: float | None) -> dict[str, Any]:
        raw = self.tokenizer.tokens[token]
        number_of = {"id": token} if self.request.token_ids else {}
        return {"token": self._name(token), "logprob": number, "bytes": [*raw], **number_of}

    def _name(self, token: int) -> str:
        return token_name(self.tokenizer, token)


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as text; one that is no whole characters as OpenAI names it, bytes:\\xe2\\x80."""
    raw = tokenizer.tokens[token]
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
