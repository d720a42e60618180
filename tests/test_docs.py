"""The documentation builds as a site, and every file of docs/ is in its navigation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+?)(?:#[^)]*)?\)")


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/reference/api/index.html").read_text()
    assert all(name in page for name in ("generate", "PixelPipeline", "patch_attention"))


def test_every_page_is_in_the_navigation():
    def pages(node):
        if isinstance(node, str):
            return {node}
        return set().union(*map(pages, node.values() if isinstance(node, dict) else node))

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert pages(nav) == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_of_the_front_pages_exist(page):
    targets = [
        t for t in LINK.findall((ROOT / page).read_text()) if "://" not in t and not t.startswith("mailto:")
    ]
    assert [target for target in targets if not (ROOT / target).exists()] == []
