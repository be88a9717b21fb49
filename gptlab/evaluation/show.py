"""Measurements shown in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console

from gptlab.system.terminal import harmless, table

SHOWN_CHARACTERS = 120  # of a copy


def show_losses(content: dict[str, Any], console: Console) -> None:
    """Print what `measure_losses` returns."""
    models = {"A": content, "B": content["compare"]} if "compare" in content else {"": content}
    for letter, each in models.items():
        print_line(console, f"{letter or 'model'}: {each['model']}")
    print_text_facts(content, console)

    rows: dict[str, Callable[[Any], str]] = {
        "protocol": str,
        "nats_per_token": "{:.4f}".format,
        "perplexity": "{:.4f}".format,
        "bits_per_byte": "{:.4f}".format,
        "tokens": "{:,}".format,
        "bytes": "{:,}".format,
        "seconds": "{:.2f}".format,
    }
    columns = {"": [name.replace("_", " ") for name in rows]}
    columns |= {letter or "value": [form(each[name]) for name, form in rows.items()] for letter, each in models.items()}
    console.print(table(columns))
    if places := loss_by_context(models):
        print_line(console, "nats per token by how many tokens the window had shown:")
        console.print(table(places))
    if "difference" in content:
        print_line(console, content["difference"]["words"])
        print_line(console, content["difference"]["method"])


def loss_by_context(models: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Return the columns of a table: the loss by position in the window, 1, 2, 3-4, 5-8, ...; empty without windows."""
    windowed = {letter: each for letter, each in models.items() if "loss_by_position" in each}
    longest = max((len(each["loss_by_position"]) for each in windowed.values()), default=0)
    columns: dict[str, list[str]] = {"": []} if windowed else {}
    for first in (0, *(2**i for i in range((longest - 1).bit_length()))) if windowed else ():
        last = min(max(2 * first, 1), longest)
        columns[""].append(f"{last}" if last == first + 1 else f"{first + 1}-{last}")
        for letter, each in windowed.items():
            counts = each["tokens_by_position"][first:last]
            losses = zip(each["loss_by_position"][first:last], counts, strict=True)
            nats, tokens = sum(loss * count for loss, count in losses if count), sum(counts)
            columns.setdefault(letter or "nats per token", []).append(f"{nats / tokens:.4f}" if tokens else "-")
            if not letter:
                columns.setdefault("tokens", []).append(f"{tokens:,}")
    return columns


def print_line(console: Console, line: str) -> None:
    """Print a line as it is; in a file, without wrapping."""
    console.print(line, markup=False, soft_wrap=not console.is_terminal)


def print_text_facts(content: dict[str, Any], console: Console) -> None:
    data = content["data"]
    print_line(console, f"text: {data['name']}, {data['split']}, sha256 {data['sha256'][:16]}")
    if data["read"]:
        print_line(console, f"read: {data['read']}")
    for note in content["notes"]:
        print_line(console, f"note: {note}")


def show_copies(content: dict[str, Any], console: Console) -> None:
    """Print what `measure_copies` returns."""
    print_line(console, f"model: {content['model']}")
    print_text_facts(content, console)
    print_line(console, f"sample: {content['origin']}")
    part = content["data"]["split"]
    rows = {"sample": content["sample"], part: content["held_out"]}
    columns = {
        "": list(rows),
        "characters": [f"{row['characters']:,}" for row in rows.values()],
        "longest copy": [f"{row['longest']:,}" for row in rows.values()],
    }
    for length in content["sample"]["share_in_copies"]:
        columns[f"in {length}+"] = [f"{row['share_in_copies'][length]:.1%}" for row in rows.values()]
    console.print(table(columns))
    least = ", ".join(content["sample"]["share_in_copies"])
    print_line(
        console, f"in N+: how much of the text lies in copies of {least} characters and more from the train part"
    )
    print_line(console, f"{part}: held-out text, at most of the same length, to judge the sample by")
    print_line(console, "the sample's longest copies, and where they stand in the train part:")
    for copy in content["longest"]:
        end = " ..." if copy["characters"] > SHOWN_CHARACTERS else ""
        print_line(
            console,
            f"{copy['characters']:6,}  at {copy['found']:<11,}  {harmless(copy['text'][:SHOWN_CHARACTERS])!r}{end}",
        )
