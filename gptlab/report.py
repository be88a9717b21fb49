"""`python -m gptlab.report DIR`: what a sweep, or any set of runs, has found, as a table with error bars and plots."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab.system.arguments import some_path, some_text
from gptlab.system.errors import UserError, command_line
from gptlab.system.terminal import harmless

if TYPE_CHECKING:
    from rich.console import Console


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m gptlab.report", description=__doc__)
    p.add_argument(
        "paths", metavar="DIR", type=some_path, nargs="*", help="run directories, or folders with some below them"
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        type=some_path,
        help="where files go (default: DIR/report, if one folder of runs is given)",
    )
    p.add_argument(
        "--metric",
        type=some_text,
        metavar="KEY",
        help="a number of summary.json (default: val/loss; val/bpb or a score where losses do not compare)",
    )
    p.add_argument(
        "--baseline",
        metavar="GROUP",
        type=some_text,
        help="compare with this one, e.g. n_head=4 (default: the sweep's)",
    )
    p.add_argument(
        "--sort",
        type=some_text,
        default="mean",
        metavar="KEY",
        help="a swept key, or a column of report.csv (default: mean)",
    )
    p.add_argument(
        "--reference",
        nargs="?",
        const=True,
        type=some_text,
        metavar="NAME",
        help="the lessons' figures beside ours: heads, depth, ladder, char (default: what fits)",
    )
    p.add_argument(
        "--frontier",
        action="store_true",
        help="reward against KL, of runs that answers were rewarded in (task=dpo, ppo, grpo), beside the best of n",
    )
    p.add_argument("--no-plots", action="store_true", help="tables only")
    p.add_argument("--json", action="store_true", help="JSON on standard output")
    p.add_argument("--diff", nargs=2, metavar=("A", "B"), type=some_path, help="what two runs differ in")
    return p


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from gptlab.reports import difference, tables
    from gptlab.reports.pages.report_page import write_report_page
    from gptlab.reports.report import build_report
    from gptlab.system import terminal

    console = Console(highlight=False)
    if args.diff:
        found = difference.compare_runs(*args.diff)
        if args.json:
            print(terminal.as_json(found), end="")
        else:
            tables.print_difference(found, args.diff[0], args.diff[1], console)
        return
    if args.frontier:
        show_frontier(args, console)
        return
    reference = "" if args.reference is True else args.reference
    report = build_report(args.paths, args.metric, args.baseline, args.sort, reference)
    page = None if args.json else page_of_one_run(args.paths)
    out = folder_of_files(args)
    if out is not None:
        images: list[str] = []
        if not args.no_plots:
            from gptlab.reports.plots.figures import write_plots

            images = write_plots(report, out)
        tables.write_files(report, out, images)  # before what is printed, whose reader may have gone
        write_report_page(report, out, images)
    if args.json:
        print(terminal.as_json(tables.report_dict(report)), end="")
    else:
        tables.print_report(report, console)
        if page:
            console.print(f"page: {page}", markup=False, soft_wrap=True)
        where = f"files: {out}" if out else "for files (HTML, Markdown, CSV, JSON, LaTeX, plots): --out FOLDER"
        console.print(where, markup=False, soft_wrap=True)


def show_frontier(args: argparse.Namespace, console: Console) -> None:
    """Write and print reward against KL."""
    from gptlab.reports import frontier_tables
    from gptlab.reports.frontier import build_frontier
    from gptlab.reports.pages.report_page import write_frontier_page
    from gptlab.system import terminal

    frontier = build_frontier(args.paths, args.metric)
    out = folder_of_files(args)
    if out is not None:
        images: list[str] = []
        if not args.no_plots:
            from gptlab.reports.plots.frontier import write_frontier

            images = write_frontier(frontier, out)
        frontier_tables.write_files(frontier, out, images)
        write_frontier_page(frontier, out, images)
    if args.json:
        print(terminal.as_json(frontier_tables.frontier_dict(frontier)), end="")
    else:
        frontier_tables.print_frontier(frontier, console)
        where = f"files: {out}" if out else "for files (HTML, Markdown, CSV, JSON, plot): --out FOLDER"
        console.print(where, markup=False, soft_wrap=True)


def page_of_one_run(paths: Sequence[Path]) -> Path | None:
    """Write the page of a run that is reported alone, which one of an older version lacks; returns its path.

    None: there are several runs, or the page cannot be written, which ends no report.
    """
    from gptlab.reports import records
    from gptlab.reports.pages.run_page import write_run_page

    if len(paths) != 1 or not records.is_run(paths[0]):
        return None
    try:
        return write_run_page(paths[0])
    except UserError as error:
        print(harmless(f"{paths[0]}: its page is not written: {error}"), file=sys.stderr)
        return None


def folder_of_files(args: argparse.Namespace) -> Path | None:
    """Return where files go: what --out says, or report/ in the one folder of runs; None: nowhere.

    Raises:
        UserError: --out names a run, whose page a report would replace.
    """
    from gptlab.reports import records

    if args.out is not None and records.is_run(args.out):
        raise UserError(f"--out {args.out}: is a run's folder, which has a page of its own; give another folder")
    if args.out is None and not args.json and len(args.paths) == 1 and not records.is_run(args.paths[0]):
        return Path(args.paths[0], "report")
    return args.out


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line: a mistake is one message and exit code 1 (2 for flags); Ctrl-C is 130."""
    with command_line():
        p = parser()
        args = p.parse_args(argv)
        if bool(args.paths) == bool(args.diff):
            p.error("give run directories or folders of runs, or --diff A B")
        if args.frontier and (args.diff or args.baseline or args.reference or args.sort != "mean"):
            p.error("--frontier goes with --metric, --out, --no-plots and --json only")
        run(args)


if __name__ == "__main__":
    main()
