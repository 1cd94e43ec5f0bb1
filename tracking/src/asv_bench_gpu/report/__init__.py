"""The pages: what the results say, as one self-contained folder that needs no network, no server and no GPU.

`build` reads asv's results and our journals, writes a front page with figures, a page of what changed in the history
(`changes`), and asv's own pages beside them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asv.config import Config

from asv_bench_gpu import project
from asv_bench_gpu.changes import FAMILY_ALPHA, MARGIN_PERCENT
from asv_bench_gpu.policy import Accepted, Policy, blaming
from asv_bench_gpu.report import assets, asv_pages, data, findings, pages, site
from asv_bench_gpu.report.data import History
from asv_bench_gpu.report.findings import Findings

#: What `build` raises when the pages, or a part of them, cannot be built; the message says why.
ERRORS = (site.SiteError, asv_pages.PublishError, assets.AssetsChangedError)

_TEMPLATES = Path(__file__).with_name("templates")


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr)


def changes(
    config_path: Path,
    *,
    policy: Path | None = None,
    bench: str | None = None,
    margin_percent: float = MARGIN_PERCENT,
    family_alpha: float = FAMILY_ALPHA,
    progress: Callable[[str], None] = _to_stderr,
) -> Findings:
    """What became slower or faster in the recorded history.

    Args:
        config_path: asv's configuration. Paths in it are relative to its folder.
        policy: file with what is acknowledged; by default ``gate.toml`` beside the configuration, if there is one.
        bench, margin_percent, family_alpha: as for `findings.find`.
        progress: called with one line of text at a time.

    Raises:
        UsageError: there is no configuration or the policy is none; or as for `findings.find`.
    """
    config_path = config_path.resolve()
    config, history = _open(config_path, progress)
    policy = policy or _policy_beside(config_path)
    return _find(config, history, policy, bench=bench, margin_percent=margin_percent, family_alpha=family_alpha)


def build(
    config_path: Path,
    *,
    html_dir: Path | None = None,
    policy: Path | None = None,
    progress: Callable[[str], None] = _to_stderr,
) -> Path:
    """Build the pages.

    Args:
        config_path: asv's configuration; its extra key ``site`` names the project-specific part of the pages.
            Paths in it are relative to its folder.
        html_dir: where to write; by default ``html_dir`` of the configuration.
        policy: as for `changes`.
        progress: called with one line of text at a time.

    Returns:
        The front page, ``index.html`` in ``html_dir``.

    Raises:
        site.SiteError: the site file is missing or wrong, or does not fit the results.
        UsageError: as for `changes`.
        asv_pages.PublishError: asv's own pages could not be built. The front page is there and says so.
        assets.AssetsChangedError: a script for asv's pages is not the one whose hash is checked in.
    """
    config_path = config_path.resolve()
    root = config_path.parent
    config, history = _open(config_path, progress)
    if not isinstance(getattr(config, "site", None), str):
        raise site.SiteError(f"{config_path}: no 'site'")
    chosen = site.load(root / config.site)
    found = _find(config, history, policy or _policy_beside(config_path))
    target = root / config.html_dir if html_dir is None else html_dir.resolve()

    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / "figures", ignore_errors=True)
    sections = pages.ratio_sections(history, chosen, target / "figures")
    tables = pages.table_sections(history, chosen)

    failure: Exception | None = None
    if not history.measurements:
        shutil.rmtree(target / "asv", ignore_errors=True)
        published = asv_pages.Published(there=False, reason="There are no figures to publish yet.")
    else:
        try:
            branches = [branch for branch in config.branches if branch is not None]
            published = asv_pages.publish(config_path, branches, target / "asv", root, progress)
        except (asv_pages.PublishError, assets.AssetsChangedError) as error:
            failure = error
            shutil.rmtree(target / "asv", ignore_errors=True)
            published = asv_pages.Published(there=False, reason=str(error))
    shutil.copyfile(_TEMPLATES / "report.css", target / "report.css")
    index = target / "index.html"
    page = pages.render(chosen, history, sections, tables, published, str(config.project))
    index.write_text(page, encoding="utf-8")
    page = pages.render_changes(found, published, str(config.project), str(config.show_commit_url))
    (target / "changes.html").write_text(page, encoding="utf-8")
    if failure is not None:
        raise failure
    progress(f"wrote {index}")
    return index


def _open(config_path: Path, progress: Callable[[str], None]) -> tuple[Any, History]:
    """The configuration, its paths made absolute, and what is recorded."""
    if not config_path.is_file():
        raise project.UsageError(f"--config: expected a file, got {config_path}")
    config = Config.load(str(config_path))
    config.repo, config.results_dir = (str(config_path.parent / path) for path in (config.repo, config.results_dir))
    progress(f"reading {config.results_dir}")
    history = data.load(Path(config.results_dir), Path(config.repo), config.branches)
    for problem in history.problems:
        progress(f"left out: {problem}")
    return config, history


def _policy_beside(config_path: Path) -> Path | None:
    path = config_path.with_name("gate.toml")
    return path if path.is_file() else None


def _find(config: Any, history: History, policy: Path | None, **options: Any) -> Findings:
    """Look for changes, with what the policy acknowledges."""

    entries: list[tuple[Accepted, str]] = []
    if policy:
        with blaming(policy):
            for number, entry in enumerate(Policy.read(policy).acknowledged, start=1):
                where = f"acknowledged[{number}].commit"
                entries.append((entry, project.resolve_one(config, entry.commit, argument=where)))

    def between(before: str, commit: str) -> list[str]:
        return project.resolve(config, f"{before}..{commit}")

    return findings.find(history, entries, between, **options)
