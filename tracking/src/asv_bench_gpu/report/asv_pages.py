"""asv's own pages (graphs, grid, regressions), made to work without a network and without a web server."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asv_bench_gpu
from asv_bench_gpu.report import assets

_TEMPLATES = Path(__file__).with_name("templates")
# Every script and style sheet that a page loads from somewhere else.
_REMOTE_TAG = re.compile(
    r"<(?:script|link)\b[^>]*?\b(?P<attribute>src|href)=\"(?P<url>(?:https?:)?//[^\"]*)\"[^>]*?(?P<close>/?>)"
)
_REMOTE_LINK = re.compile(r"(<a\b[^>]*?)\s+href=\"(?:https?:)?//[^\"]*\"")
_ANY_REMOTE = re.compile(r"\b(?:src|href|action|data|srcset)\s*=\s*[\"']?\s*(?:https?:)?//[^\s\"'>]*", re.IGNORECASE)
_INTEGRITY = re.compile(r"integrity=\"(?P<algorithm>sha\d+)-(?P<digest>[^\"]+)\"")
_NAVIGATION = '<ul class="nav navbar-nav navbar-left">'


class PublishError(RuntimeError):
    """asv's pages could not be built, or are not the ones this module knows how to rewrite."""


@dataclasses.dataclass(frozen=True)
class Published:
    """What became of asv's pages.

    Attributes:
        there: whether they were built.
        reason: if not, why not.
        missing: files without which they show nothing; empty when they work.
        why_missing: what went wrong fetching them.
        command: what fetches them.
    """

    there: bool
    reason: str = ""
    missing: tuple[str, ...] = ()
    why_missing: str = ""
    command: str = ""


def publish(config_path: Path, branches: list[str], target: Path, root: Path,
            progress: Callable[[str], None]) -> Published:  # fmt: skip
    """Run ``asv publish`` into ``target`` and make what it wrote self-contained.

    asv runs in a process of its own: it changes the working directory and writes its log to stdout.

    Raises:
        PublishError: asv failed, or its pages are not as expected.
        assets.AssetsChangedError: a file to be published is not the one whose hash is checked in.
    """
    command = [sys.executable, "-m", "asv", "publish", "--config", str(config_path), "--no-pull"]
    command += ["--html-dir", str(target)]
    if len(branches) == 1:
        command += branches  # asv cannot place a result whose commit git does not know: this leaves those out
    package_root = str(Path(asv_bench_gpu.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
        cwd=config_path.parent,
        env={**os.environ, "PYTHONPATH": path},
    )
    for line in done.stdout.splitlines():
        progress(f"asv: {line}")
    if done.returncode != 0 or not (target / "index.html").is_file():
        tail = "\n".join(done.stdout.strip().splitlines()[-3:])
        raise PublishError(f"asv publish ended with {done.returncode}:\n{tail}")
    folder = assets.cache_folder(root)
    published = Published(there=True)
    try:
        assets.fetch(folder, progress)
    except assets.AssetsUnavailableError as error:
        shown = folder.relative_to(root) if folder.is_relative_to(root) else folder
        published = Published(
            there=True,
            missing=tuple(assets.missing(folder)),
            why_missing=str(error),
            command=shlex.join(assets.command(shown)),
        )
    else:
        assets.copy(folder, target / "vendor")
    shutil.copyfile(_TEMPLATES / "offline.js", target / "offline.js")
    shutil.copyfile(_TEMPLATES / "asv_error.html", target / "error.html")
    index = target / "index.html"
    index.write_text(rewrite(index.read_text(encoding="utf-8"), target / "vendor"), encoding="utf-8")
    for page in target.rglob("*.html"):
        remote = _ANY_REMOTE.search(page.read_text(encoding="utf-8"))
        if remote is not None:
            raise PublishError(f"{page.name} still refers to another host: {remote.group()}")
    _add_script_twins(target)
    return published


def rewrite(html: str, vendor: Path) -> str:
    """asv's index page with every remote file replaced by its copy in ``vendor``.

    Where a copy is the very file that asv names, asv's own integrity hash must match it.

    Raises:
        PublishError: the page loads a file unknown here, or no longer loads a known one.
    """
    seen: list[assets.Asset] = []

    def local(match: re.Match[str]) -> str:
        url = match["url"]
        asset = next((asset for asset in assets.FILES if url.endswith(asset.url_ending)), None)
        if asset is None:
            raise PublishError(f"asv's page loads {url}, which has no local copy")
        seen.append(asset)
        _check_integrity(match.group(), asset, vendor / asset.name)
        if match["attribute"] == "href":
            return f'<link rel="stylesheet" href="vendor/{asset.name}">'
        return f'<script src="vendor/{asset.name}" onerror="js_load_failure()">'

    html = _REMOTE_TAG.sub(local, html)
    if sorted(a.name for a in seen) != sorted(a.name for a in assets.FILES):
        absent = sorted({a.name for a in assets.FILES} - {a.name for a in seen})
        raise PublishError(f"asv's page does not load each file once as expected; not found: {', '.join(absent)}")
    jquery = '<script src="vendor/jquery.min.js" onerror="js_load_failure()"></script>'
    html = _replace_once(html, jquery, f'{jquery}\n    <script src="offline.js"></script>')
    html = _replace_once(html, _NAVIGATION, f'{_NAVIGATION}\n        <li><a href="../index.html">Report</a></li>')
    return _REMOTE_LINK.sub(r"\1", html)


def _replace_once(html: str, old: str, new: str) -> str:
    if html.count(old) != 1:
        raise PublishError(f"asv's page has {html.count(old)} times, not once: {old}")
    return html.replace(old, new)


def _check_integrity(tag: str, asset: assets.Asset, copy: Path) -> None:
    if not asset.identical or not copy.is_file():
        return
    stated = _INTEGRITY.search(tag)
    if stated is None:
        raise PublishError(f"asv's page states no integrity hash for {asset.url_ending}")
    found = base64.b64encode(hashlib.new(stated["algorithm"], copy.read_bytes()).digest()).decode()
    if found != stated["digest"]:
        raise PublishError(f"{asset.name} is not the file that asv's page names: {found}, not {stated['digest']}")


def _add_script_twins(target: Path) -> None:
    """Beside every JSON file a script with the same content, for pages read from disk (see offline.js)."""
    for path in target.rglob("*.json"):
        key = json.dumps(path.relative_to(target).as_posix())
        content = path.read_text(encoding="utf-8").strip()
        path.with_name(f"{path.name}.js").write_text(f"asvOffline[{key}] = {content};\n", encoding="utf-8")
