"""The command `asv-gpu`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

from asv_bench_gpu import project, report, runner


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asv-gpu",
        description="Verified, repeatable figures of GPU kernels, commit by commit, in asv's format.",
        epilog="example: asv-gpu run HEAD. Exit codes: 0 pass, 2 usage error, or data missing or unverified.",
    )
    parser.add_argument("--config", type=Path, default=Path("asv.conf.json"), help="asv's configuration (%(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="verify and measure commits",
        description="Verify each commit and measure it, one fresh process per round. What is already recorded is not "
        "measured again, so the same command continues after an interruption.",
        epilog="example: asv-gpu run v0.1.0..HEAD --rounds 10",
    )
    run.add_argument("commits", nargs="*", metavar="COMMITS", help="commits and ranges A..B, A excluded (HEAD)")
    run.add_argument("--rounds", type=_positive, default=10, help="fresh processes per commit (%(default)s)")
    run.add_argument("--bench", metavar="REGEX", help="only benchmarks that match, e.g. 'order.*DeepSeek'")
    run.add_argument("--machine", metavar="NAME", help="name in the results (default: the GPU's, or cpu-ARCHITECTURE)")
    run.add_argument(
        "--timeout-seconds",
        type=_positive_seconds,
        default=900.0,
        metavar="S",
        help="limit for one process (%(default)s)",
    )
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    run.set_defaults(command=_run)

    pages = commands.add_parser(
        "report",
        help="build the pages",
        description="Build the HTML pages from the recorded results. Needs neither a GPU nor a network.",
        epilog="example: asv-gpu report --html-dir /tmp/pages",
    )
    pages.add_argument(
        "--html-dir", type=Path, metavar="DIR", help="where to (default: html_dir of asv's configuration)"
    )
    pages.set_defaults(command=_report)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
    return value


def _run(arguments: argparse.Namespace) -> int:
    summary = runner.run(
        arguments.config,
        " ".join(arguments.commits) if arguments.commits else "HEAD",
        machine=arguments.machine,
        rounds=arguments.rounds,
        bench=arguments.bench,
        timeout_seconds=arguments.timeout_seconds,
    )
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(summary), "exit_code": summary.exit_code}, indent=2))
        return summary.exit_code
    print(f"machine {summary.machine}: {len(summary.measured)} rounds measured, {len(summary.kept)} already recorded")
    for name, reason in summary.skipped.items():
        print(f"skipped {name}: {reason}")
    for path in summary.results:
        print(f"results {path}")
    for commit, number, kind, message in summary.failures:
        print(f"FAILED  {commit[:8]} round {number}: {kind}: {(message.strip().splitlines() or [''])[-1]}")
    return summary.exit_code


def _report(arguments: argparse.Namespace) -> int:
    print(report.build(arguments.config, html_dir=arguments.html_dir))
    return 0


def main() -> None:
    """Run the command line; exits with the codes named in ``--help``."""
    arguments = _parser().parse_args()
    try:
        sys.exit(arguments.command(arguments))
    except (project.UsageError, *report.ERRORS) as error:
        print(f"asv-gpu: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
