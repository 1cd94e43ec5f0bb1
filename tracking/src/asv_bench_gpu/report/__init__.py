"""The pages: what the results say, as one self-contained folder that needs no network, no server and no GPU.

`build` reads asv's results and our journals, writes a front page with figures, and asv's own pages beside it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from asv.config import Config

from asv_bench_gpu.report import assets, asv_pages, data, pages, site

#: What `build` raises when the pages, or a part of them, cannot be built; the message says why.
ERRORS = (site.SiteError, asv_pages.PublishError, assets.AssetsChangedError)

_TEMPLATES = Path(__file__).with_name("templates")


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr)


def build(config_path: Path, *, html_dir: Path | None = None, progress: Callable[[str], None] = _to_stderr) -> Path:
    """Build the pages.

    Args:
        config_path: asv's configuration; its extra key ``site`` names the project-specific part of the pages.
            Paths in it are relative to its folder.
        html_dir: where to write; by default ``html_dir`` of the configuration.
        progress: called with one line of text at a time.

    Returns:
        The front page, ``index.html`` in ``html_dir``.

    Raises:
        site.SiteError: the site file is missing or wrong, or does not fit the results.
        asv_pages.PublishError: asv's own pages could not be built. The front page is there and says so.
        assets.AssetsChangedError: a script for asv's pages is not the one whose hash is checked in.
    """
    config_path = config_path.resolve()
    root = config_path.parent
    config = Config.load(str(config_path))
    if not isinstance(getattr(config, "site", None), str):
        raise site.SiteError(f"{config_path}: no 'site'")
    chosen = site.load(root / config.site)
    target = root / config.html_dir if html_dir is None else html_dir.resolve()
    progress(f"reading {root / config.results_dir}")
    history = data.load(root / config.results_dir, root / config.repo, config.branches)
    for problem in history.problems:
        progress(f"left out: {problem}")

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
    if failure is not None:
        raise failure
    progress(f"wrote {index}")
    return index
