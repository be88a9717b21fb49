"""Clients of a server of completions: each asks, waits for the whole answer, and asks again.

Python's own http.client, and nothing on top of it: the clients share the cores with the server that they measure.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple
from urllib.parse import urlsplit

Body = dict[str, Any]
PATIENCE = 600.0  # seconds for which a server may say nothing


class Answer(NamedTuple):
    """What a server has answered, or why it has not."""

    number: int
    """Of the request."""
    text: str
    tokens: int
    """As many as were asked for where nothing but their number has ended the answer; else the pieces that came."""
    first: float
    """Seconds to the first piece of text."""
    seconds: float
    """To the end."""
    error: str | None = None

    @property
    def tokens_per_sec(self) -> float:
        """The tokens after the first one, by the seconds after it."""
        return (self.tokens - 1) / max(self.seconds - self.first, 1e-9)


def ask_all(address: str, bodies: Sequence[Body], clients: int) -> tuple[list[Answer], float]:
    """Send requests of completions, and stream their answers.

    Args:
        address: of the server, e.g. http://127.0.0.1:8000.
        bodies: of the requests, which the clients take one after another.
        clients: how many ask at once.

    Returns:
        The answers, in the order of the requests, and the seconds from the first request to the last answer.
    """
    waiting: SimpleQueue[tuple[int, Body]] = SimpleQueue()
    for request in enumerate(bodies):
        waiting.put(request)

    def client(_: int) -> list[Answer]:
        found = list[Answer]()
        place = urlsplit(address)
        with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE)) as connection:
            while True:
                try:
                    number, body = waiting.get_nowait()
                except Empty:
                    return found
                found.append(ask(connection, number, body))

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = [answer for found in pool.map(client, range(clients)) for answer in found]
    return sorted(answers), time.perf_counter() - begin


def ask(connection: http.client.HTTPConnection, number: int, body: Body) -> Answer:
    """Send a request and read its stream to the end."""
    begin = time.perf_counter()
    first, pieces, finish = 0.0, list[str](), None
    try:
        for chunk in events(send(connection, json.dumps({**body, "stream": True}))):
            for choice in chunk["choices"]:
                if choice["text"]:
                    first = first or time.perf_counter() - begin
                    pieces.append(choice["text"])
                finish = choice["finish_reason"] or finish
        if finish is None:
            raise ValueError("the answer was cut off")
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        connection.close()
        return Answer(number, "".join(pieces), len(pieces), first, time.perf_counter() - begin, repr(error))
    seconds = time.perf_counter() - begin
    tokens = body["max_tokens"] if finish == "length" else len(pieces)
    return Answer(number, "".join(pieces), tokens, first or seconds, seconds)


def send(connection: http.client.HTTPConnection, content: str) -> http.client.HTTPResponse:
    """Send a request; on a new connection if the server has closed this one since its last answer, as it may."""
    for is_last in (False, True):
        try:
            connection.request("POST", "/v1/completions", content, {"content-type": "application/json"})
            return connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected):
            connection.close()
            if is_last:
                raise
    raise AssertionError


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    """Yield the objects of a stream of server-sent events, up to its end.

    Raises:
        ValueError: the answer is an error, or is cut off.
    """
    if response.status != 200:
        raise ValueError(f"status {response.status}: {response.read().decode('utf-8', 'replace')[:500]}")
    is_done = False
    for line in response:
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif line.startswith(b"data: "):
            yield json.loads(line[6:])
    response.read()  # its end, without which the connection cannot be used again
    if not is_done:
        raise ValueError("the stream was cut off")
