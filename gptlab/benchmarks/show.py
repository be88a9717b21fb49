"""Print the results of a benchmark on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gptlab.benchmarks.comparison import RUN

if TYPE_CHECKING:
    from rich.console import Console


def print_results(found: dict[str, Any], console: Console) -> None:
    """Print the machine, the run, a table with a column for each side, and the ratio of their times."""
    from rich import box
    from rich.table import Table

    if not console.is_terminal:  # no line breaks in a file or a pipe
        console.width = 200
    here = found["machine"]
    versions = ", ".join(f"{name} {here['versions'][name]}" for name in ("gptlab", "torch", "lightning"))
    beside = f" beside {found['busy']} busy processes" if found["busy"] else ""
    console.print(f"{here['device']}; {here['processor']}, {here['cores']} cores{beside}; {versions}", markup=False)
    names = list(found["sides"])
    console.print(describe_run(found), markup=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for heading, cells in (rows_of_training if found["what"] == "training" else rows_of_sampling)(found):
        table.add_row(heading, *cells)
    console.print(table)
    ratios = {"": found.get("time_ratio")}
    for batch, each in found.get("batches", {}).items():
        ratios[f"batch {batch}: "] = each.get("time_ratio")
        ratios[f"batch {batch}, to the first token: "] = each.get("prefill_ratio")
        ratios[f"batch {batch}, after it: "] = each.get("decoding_ratio")
    for what, r in ratios.items():
        if r is not None:
            interval = "95% interval {:.3f} to {:.3f}; ".format(*r["interval"]) if r["interval"] else ""
            console.print(
                f"{what}time of {names[0]} / {names[1]}: {r['median']:.3f} ({interval}rounds: {found['rounds']}, from "
                f"{r['min']:.3f} to {r['max']:.3f}), {1 / r['median']:.2f} times as fast"
            )


def describe_run(found: dict[str, Any]) -> str:
    """Return the measured run in one line."""
    tokens = f", {found['tokens_per_step']:,} tokens a step" if "tokens_per_step" in found else ""
    text = f" of {found['data']}" if "data" in found else ""
    weights = f", weights of {found['weights']}" if "weights" in found else ""
    how = f"precision={found['precision']} compile={found['compile']}{weights}"
    return f"{found['name']}, {found['parameters']:,} parameters{tokens}{text}; {how}"


Rows = list[tuple[str, list[str]]]


def rows_of_training(found: dict[str, Any]) -> Rows:
    sides = list(found["sides"].values())

    def row(heading: str, key: str, form: Callable[[Any], str]) -> tuple[str, list[str]]:
        return heading, ["-" if each.get(key) is None else form(each[key]) for each in sides]

    peak, listed = found["measured_peak_flops"], found["listed_peak_flops"]
    rows = [
        row("step, median", "step_seconds", lambda x: milliseconds(x["median"])),
        row("10% to 90%", "step_seconds", lambda x: f"{milliseconds(x['p10'])} to {milliseconds(x['p90'])}"),
        row("tokens/s", "tokens_per_sec", "{:,.0f}".format),
        row(f"mfu, of {peak / 1e12:.3g} TFLOP/s measured here", "mfu", "{:.1%}".format),
    ]
    if listed:
        rows.append(row(f"mfu, of {listed / 1e12:.3g} TFLOP/s in the data sheet", "mfu_listed", "{:.1%}".format))
    rows += [
        row("memory, peak", "memory_bytes", megabytes),
        row("before the first step", "memory_before_bytes", megabytes),
        row("first step", "first_step_seconds", "{:.2f} s".format),
        row("of it compiling, from an empty cache", "compile_seconds", "{:.2f} s".format),
        ("processes x threads", [f"{each['processes']} x {each['threads']}" for each in sides]),
    ]
    for part, share in found["sides"][RUN]["shares"].items():
        rows.append((f"share of {part}", [f"{share:.1%}", *[""] * (len(sides) - 1)]))
    return [(heading, cells) for heading, cells in rows if set(cells) != {"-"}]


def rows_of_sampling(found: dict[str, Any]) -> Rows:
    names = list(found["sides"])
    rows: Rows = []
    for batch, each in found["batches"].items():
        speeds = [f"{each[n]['tokens_per_sec']:,.1f} ({each[n]['min']:,.1f} to {each[n]['max']:,.1f})" for n in names]
        rows.append((f"batch {batch}, tokens/s", speeds))
        first = f"prefill of {found['prompt_tokens']} tokens"
        known = [each[name].get("prefill_seconds") for name in names]
        rows.append((first, ["" if seconds is None else milliseconds(seconds) for seconds in known]))
    sides = found["sides"].values()
    rows.append(("memory, peak", [megabytes(each["memory_bytes"]) for each in sides]))
    resident = [each.get("resident_bytes") for each in sides]
    rows.append(("memory, at the end", ["" if count is None else megabytes(count) for count in resident]))
    return [*rows, ("threads", [str(each["threads"]) for each in sides])]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
