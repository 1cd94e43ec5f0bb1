"""The command `asv-gpu`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import traceback
from pathlib import Path
from types import ModuleType

from asv_bench_gpu import calibrate, changes, compare, gate, project, report, runner, summary, verdict
from asv_bench_gpu.report.text import gist


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asv-gpu",
        description="Verified, repeatable figures of GPU kernels, commit by commit, in asv's format.",
        epilog="example: asv-gpu run HEAD. Exit codes: 0 pass, 1 slower, 2 usage error, or data missing or unverified, "
        "3 undecided, 130 interrupted.",
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
    _add_measuring(run)
    run.set_defaults(command=_run)

    comparison = commands.add_parser(
        "compare",
        help="say whether a commit is slower than another",
        description="Verify and measure two commits in pairs of fresh processes, in the order of a coin's toss, until "
        "it is clear whether HEAD is slower. The same command continues after an interruption.",
        epilog="example: asv-gpu compare HEAD~1 HEAD --margin-percent 2",
    )
    comparison.add_argument("base", metavar="BASE", help="commit to compare with")
    comparison.add_argument("head", metavar="HEAD", help="commit in question; BASE again shows what noise alone does")
    _add_limits(
        comparison,
        compare,
        margin="how much slower HEAD may be",
        alpha="greatest probability of a wrong verdict, over all benchmarks and looks",
    )
    comparison.add_argument(
        "--max-rounds",
        type=_positive,
        default=verdict.MAX_ROUNDS,
        metavar="N",
        help="pairs of processes after which it stays undecided (%(default)s)",
    )
    comparison.add_argument(
        "--bench", metavar="REGEX", help="only benchmarks in seconds that match (default: every gputime_*)"
    )
    _add_measuring(comparison)
    comparison.set_defaults(command=_compare)

    release = commands.add_parser(
        "gate",
        help="say whether a commit may be released",
        description="Compare a commit with the baseline of a policy: times, within the margins of suites, and numbers "
        "that must not grow. Exit code 0 releases, no other does.",
        epilog="example: asv-gpu gate HEAD --markdown summary.md --junit gate.xml",
    )
    release.add_argument("head", nargs="?", default="HEAD", metavar="HEAD", help="commit in question (%(default)s)")
    _add_policy(release)
    release.add_argument("--markdown", type=Path, metavar="FILE", help="also write it for a pull request")
    release.add_argument("--junit", type=Path, metavar="FILE", help="also write it as JUnit's XML")
    _add_measuring(release)
    release.set_defaults(command=_gate)

    calibration = commands.add_parser(
        "calibrate",
        help="measure how often the gate is wrong on this machine",
        description="Measure two builds of the same code in pairs of fresh processes, draw comparisons from these "
        "rounds, judge them by the gate's policy, and say how many fail, and how many do once a benchmark is slower. "
        "The same command continues after an interruption, and more rounds add to those that are recorded.",
        epilog="example: asv-gpu calibrate HEAD --rounds 100",
    )
    calibration.add_argument("commit", nargs="?", default="HEAD", metavar="COMMIT", help="the code (%(default)s)")
    calibration.add_argument("--rounds", type=_positive, default=60, metavar="N", help="pairs to measure (%(default)s)")
    calibration.add_argument(
        "--comparisons", type=_positive, default=10_000, metavar="N", help="to draw for each rate (%(default)s)"
    )
    calibration.add_argument(
        "--measure-percent",
        nargs="*",
        type=int,
        choices=calibrate.SLOWDOWNS_PERCENT,
        default=calibrate.MEASURED_PERCENT,
        metavar="P",
        help="slowdowns that are measured, not computed: of 1, 2, 3, 5, 10 (3)",
    )
    _add_policy(calibration)
    _add_measuring(calibration)
    calibration.set_defaults(command=_calibrate)

    history = commands.add_parser(
        "changes",
        help="list what became slower or faster, and by which commit",
        description="Look for changes in the recorded history of every time. A slowdown is open if it is neither "
        "acknowledged nor gone, and one that is ends the command with code 1. Needs neither a GPU nor a network.",
        epilog="example: asv-gpu changes --bench 'order.*DeepSeek'",
    )
    history.add_argument("--bench", metavar="REGEX", help="only benchmarks that match, e.g. 'order.*DeepSeek'")
    _add_limits(
        history,
        changes,
        margin="smaller changes are not looked for",
        alpha="greatest probability that anything is listed of a history without such changes",
    )
    _add_known(history)
    history.add_argument("--json", action="store_true", help="print the outcome as JSON")
    history.set_defaults(command=_changes)

    pages = commands.add_parser(
        "report",
        help="build the pages",
        description="Build the HTML pages from the recorded results. Needs neither a GPU nor a network.",
        epilog="example: asv-gpu report --html-dir /tmp/pages",
    )
    pages.add_argument(
        "--html-dir", type=Path, metavar="DIR", help="where to (default: html_dir of asv's configuration)"
    )
    _add_known(pages)
    pages.set_defaults(command=_report)
    return parser


def _add_limits(parser: argparse.ArgumentParser, of: ModuleType, *, margin: str, alpha: str) -> None:
    """Which differences count, and how sure to be of them; the defaults are the module's."""
    parser.add_argument(
        "--margin-percent", type=float, default=of.MARGIN_PERCENT, metavar="P", help=f"{margin} (%(default)s)"
    )
    parser.add_argument(
        "--family-alpha", type=float, default=of.FAMILY_ALPHA, metavar="A", help=f"{alpha} (%(default)s)"
    )


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy", type=Path, default=Path("gate.toml"), metavar="FILE", help="the gate's policy (%(default)s)"
    )


def _add_known(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="the gate's policy, which says what is acknowledged (gate.toml beside asv's configuration, if any)",
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    """Options of every command that measures."""
    parser.add_argument(
        "--machine", metavar="NAME", help="name in the results (default: the GPU's, or cpu-ARCHITECTURE)"
    )
    parser.add_argument(
        "--timeout-seconds",
        type=_positive_seconds,
        default=900.0,
        metavar="S",
        help="limit for one process (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


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
    ran = runner.run(
        arguments.config,
        " ".join(arguments.commits) if arguments.commits else "HEAD",
        machine=arguments.machine,
        rounds=arguments.rounds,
        bench=arguments.bench,
        timeout_seconds=arguments.timeout_seconds,
    )
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(ran), "exit_code": ran.exit_code}, indent=2))
        return ran.exit_code
    print(f"machine {ran.machine}: {len(ran.measured)} rounds measured, {len(ran.kept)} already recorded")
    for name, reason in ran.skipped.items():
        print(f"skipped {name}: {reason}")
    for path in ran.results:
        print(f"results {path}")
    for commit, number, kind, message in ran.failures:
        print(f"FAILED  {commit[:8]} round {number}: {kind}: {gist(message)}")
    return ran.exit_code


def _compare(arguments: argparse.Namespace) -> int:
    comparison = compare.compare(
        arguments.config,
        arguments.base,
        arguments.head,
        margin_percent=arguments.margin_percent,
        family_alpha=arguments.family_alpha,
        max_rounds=arguments.max_rounds,
        bench=arguments.bench,
        machine=arguments.machine,
        timeout_seconds=arguments.timeout_seconds,
    )
    return _show(comparison, arguments)


def _gate(arguments: argparse.Namespace) -> int:
    comparison = gate.gate(
        arguments.config,
        arguments.policy,
        arguments.head,
        machine=arguments.machine,
        timeout_seconds=arguments.timeout_seconds,
    )
    for path, render in ((arguments.markdown, summary.markdown), (arguments.junit, summary.junit)):
        if path:
            path.write_text(render(comparison), encoding="utf-8")
    return _show(comparison, arguments)


def _calibrate(arguments: argparse.Namespace) -> int:
    calibration = calibrate.calibrate(
        arguments.config,
        arguments.policy,
        arguments.commit,
        rounds=arguments.rounds,
        comparisons=arguments.comparisons,
        slowdowns_percent=arguments.measure_percent,
        machine=arguments.machine,
        timeout_seconds=arguments.timeout_seconds,
    )
    print(json.dumps(dataclasses.asdict(calibration), indent=2) if arguments.json else summary.rates(calibration))
    return 0


def _show(comparison: compare.Comparison, arguments: argparse.Namespace) -> int:
    print(summary.as_json(comparison) if arguments.json else summary.text(comparison))
    return comparison.exit_code


def _changes(arguments: argparse.Namespace) -> int:
    found = report.changes(
        arguments.config,
        policy=arguments.policy,
        bench=arguments.bench,
        margin_percent=arguments.margin_percent,
        family_alpha=arguments.family_alpha,
    )
    print(summary.changes_as_json(found) if arguments.json else summary.changes(found))
    return found.exit_code


def _report(arguments: argparse.Namespace) -> int:
    print(report.build(arguments.config, html_dir=arguments.html_dir, policy=arguments.policy))
    return 0


def main() -> None:
    """Run the command line; exits with the codes named in ``--help``."""
    arguments = _parser().parse_args()
    try:
        sys.exit(arguments.command(arguments))
    except (project.UsageError, OSError, *report.ERRORS) as error:
        print(f"asv-gpu: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("asv-gpu: interrupted; every finished round is kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)  # as a shell has it
    except Exception:  # 1, with which Python would end, says that a commit is slower
        traceback.print_exc()
    sys.exit(2)


if __name__ == "__main__":
    main()
