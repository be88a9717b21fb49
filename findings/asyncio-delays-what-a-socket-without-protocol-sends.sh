#!/usr/bin/env bash
# asyncio turns Nagle's algorithm off (TCP_NODELAY) only for sockets whose protocol is IPPROTO_TCP by number. A socket of
# one's own, socket.socket(AF_INET, SOCK_STREAM), has 0 there, which means TCP too, and what it accepts inherits that. A
# server on such a socket answers a stream's first small write at once and holds the second one back until the client's
# delayed acknowledgement, some 40 ms later: a token stream of 10 ms takes 50. uvicorn 0.54.0 binds such a socket itself,
# by Config.bind_socket, which is what it serves on with --workers and --reload; with one process it lets asyncio bind.
#
# Seen on 2026-11-30, Python 3.11, Linux (milliseconds from the first to the second of two writes at once; median of 9):
#   protocol 0: TCP_NODELAY 0; 47
#   protocol 6: TCP_NODELAY 1; 0
#   uvicorn.Config.bind_socket: protocol 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import asyncio
import contextlib
import socket
import statistics
import time

import uvicorn


async def second_write(protocol: int) -> tuple[bool, float]:
    """Return whether accepted connections have TCP_NODELAY, and the milliseconds between their two writes."""
    options = []

    async def answer(reader, writer):
        options.append(bool(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        while await reader.readline():
            for piece in (b"first\n", b"second\n"):
                writer.write(piece)
        writer.close()

    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    bound.bind(("127.0.0.1", 0))
    waits = []
    async with await asyncio.start_server(answer, sock=bound):
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        for _ in range(9):
            writer.write(b"go\n")
            await reader.readline()
            begin = time.perf_counter()
            await reader.readline()
            waits.append(1e3 * (time.perf_counter() - begin))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return options[0], statistics.median(waits)


for protocol in (0, socket.IPPROTO_TCP):
    is_set, milliseconds = asyncio.run(second_write(protocol))
    print(f"protocol {protocol}: TCP_NODELAY {is_set:d}; {milliseconds:.0f}")
    assert is_set == (protocol != 0)
    assert (milliseconds > 20) == (protocol == 0)


async def app(scope, receive, send):
    pass


with uvicorn.Config(app, port=0, log_level="error").bind_socket() as bound:
    print(f"uvicorn.Config.bind_socket: protocol {bound.proto}")
    assert bound.proto == 0
PY
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0
"$folder/env/bin/python" "$folder/try.py"
echo "as stated"
