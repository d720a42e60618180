"""Optional packages: how to install the extra that brings one, from a checkout or from the package index."""

from __future__ import annotations

from pathlib import Path

DISTRIBUTION = "latent2pixel"


def checkout() -> Path | None:
    """The source tree that this package is imported from; None where it was installed from a wheel."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "recipes").is_dir() else None


def install_hint(extra: str | None = None) -> str:
    """The command that installs this package again, with an extra such as "corpus"."""
    suffix = f"[{extra}]" if extra else ""
    root = checkout()
    if root is None:
        return f"pip install '{DISTRIBUTION}{suffix}'"
    where = "." if root == Path.cwd() else str(root)
    return f"pip install -e '{where}{suffix}'"
