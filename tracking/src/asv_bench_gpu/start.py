"""The command `asv-gpu`, where something it needs may be missing."""

from __future__ import annotations

import sys


def main() -> None:
    """As `asv_bench_gpu.cli.main`; 1, with which Python would end without a package, says that a commit is slower."""
    try:
        from asv_bench_gpu import cli
    except ImportError as error:
        print(f"asv-gpu: {error}; is this the Python that `make setup` made?", file=sys.stderr)
        sys.exit(2)
    cli.main()
