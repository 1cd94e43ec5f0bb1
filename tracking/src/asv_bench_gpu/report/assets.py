"""The scripts and styles that asv's pages load from the network, as local files.

They come from npm, pinned in ``package.json`` and checked against the hashes below, into a cache folder that is
filled once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ENVIRONMENT_VARIABLE = "ASV_GPU_ASSETS"


class AssetsUnavailableError(RuntimeError):
    """The files are not there and could not be fetched; the report can do without."""


class AssetsChangedError(RuntimeError):
    """A file is not the one that was checked in: never to be published."""


@dataclasses.dataclass(frozen=True)
class Asset:
    """One file.

    Attributes:
        url_ending: how the address in asv's page ends.
        source: the file below ``node_modules``.
        sha256: of that file.
        identical: the very bytes that asv's page names, so that its ``integrity`` hash must match too.
    """

    url_ending: str
    source: str
    sha256: str
    identical: bool = True

    @property
    def name(self) -> str:
        """The file's name beside asv's pages."""
        return self.source.rsplit("/", 1)[1]


# flot's npm package has no minified files and stupid-table-plugin exists there only as 1.1.3 (asv names 1.0.1):
# those five differ from the files asv names, the others are the same bytes.
FILES = (
    Asset("/jquery-3.3.1.min.js", "jquery/dist/jquery.min.js",
          "160a426ff2894252cd7cebbdd6d6b7da8fcd319c65b70468f10b6690c45d02ef"),
    Asset("/flot/0.8.3/jquery.flot.min.js", "flot/jquery.flot.js",
          "b7b931f273c38b1277b9c6c1f4e05c4ec09885a487bddaf3279e2d7e49a38e12", identical=False),
    Asset("/flot/0.8.3/jquery.flot.time.min.js", "flot/jquery.flot.time.js",
          "a582c832adc7138a6b05aaf61f16ebac274701f1be4afea77e739a1c34b9c41a", identical=False),
    Asset("/flot/0.8.3/jquery.flot.selection.min.js", "flot/jquery.flot.selection.js",
          "e6c85f6c1ebe4b4da29d8ae238c7c5060283f05f7ef054f6b91817d02c092918", identical=False),
    Asset("/flot/0.8.3/jquery.flot.categories.min.js", "flot/jquery.flot.categories.js",
          "6e81664b28ea795c734906f4aa15614640a75ac7fbd399a7fb9084040698351a", identical=False),
    Asset("/flot-orderbars@1.0.0/js/jquery.flot.orderBars.js", "flot-orderbars/js/jquery.flot.orderBars.js",
          "39735b4f46f96ff4e082572401f47c55a2767b366fd1d1e821e44a8d830a12bf"),
    Asset("/stupidtable/1.0.1/stupidtable.min.js", "stupid-table-plugin/stupidtable.min.js",
          "4642380f28ebe9ed7cac251793b281ef8620c4386205d92788f9b12f5cceb4e0", identical=False),
    Asset("/blueimp-md5/2.19.0/js/md5.min.js", "blueimp-md5/js/md5.min.js",
          "64d7ded388c562e4bde9e58ce205e5fa01b9734fcd434d496eb7b4fbfe9b927d"),
    Asset("/bootstrap@3.1.1/dist/js/bootstrap.min.js", "bootstrap/dist/js/bootstrap.min.js",
          "898d05a17f2cfc5120ddcdba47a885c378c0b466f30f0700e502757e24b403a1"),
    Asset("/bootstrap@3.1.1/dist/css/bootstrap.min.css", "bootstrap/dist/css/bootstrap.min.css",
          "e9503448692b738dd260fbd7f7cabf2e11f09b600fa97e6eb3a56eba5b1a7e9b"),
)  # fmt: skip


def cache_folder(root: Path) -> Path:
    """Where the files are kept: ``$ASV_GPU_ASSETS``, or ``.cache/asv-assets`` below ``root``."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(chosen) if chosen else root / ".cache" / "asv-assets"


def command(folder: Path | str) -> list[str]:
    """What fills ``folder``, which already holds ``package.json``."""
    return [
        "npm",
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-package-lock",
        "--prefix",
        str(folder),
    ]


def missing(folder: Path) -> list[str]:
    """Files that are not in ``folder``, as npm names them."""
    return [asset.source for asset in FILES if not (folder / "node_modules" / asset.source).is_file()]


def fetch(folder: Path, progress: Callable[[str], None]) -> None:
    """Make sure that ``folder`` holds every file, unchanged; asks npm only when one is missing.

    Raises:
        AssetsUnavailableError: no npm, or npm failed (no network).
        AssetsChangedError: a file differs from the one whose hash is checked in.
    """
    if missing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).with_name("package.json"), folder / "package.json")
        npm = shutil.which("npm")
        if npm is None:
            raise AssetsUnavailableError("npm is not installed")
        progress(f"fetching {len(FILES)} files for asv's pages: {shlex.join(command(folder))}")
        arguments = [npm, *command(folder)[1:], "--fetch-retries=1", "--fetch-timeout=20000"]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=180)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AssetsUnavailableError(str(error)) from error
        if done.returncode != 0 or missing(folder):
            lines = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            raise AssetsUnavailableError(lines[0] if lines else f"npm ended with {done.returncode}")
    for asset in FILES:
        found = hashlib.sha256((folder / "node_modules" / asset.source).read_bytes()).hexdigest()
        if found != asset.sha256:
            raise AssetsChangedError(f"{folder}/node_modules/{asset.source}: sha256 {found}, not {asset.sha256}")


def copy(folder: Path, vendor: Path) -> None:
    """Copy the files from the cache ``folder`` to ``vendor``, beside asv's pages."""
    vendor.mkdir(parents=True, exist_ok=True)
    for asset in FILES:
        shutil.copyfile(folder / "node_modules" / asset.source, vendor / asset.name)
