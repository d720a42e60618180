from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpora():
    """The module `draw_corpus.py` of this folder, which also runs as a script."""
    path = Path(__file__).parent / "draw_corpus.py"
    spec = importlib.util.spec_from_file_location("draw_corpus", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def straight(corpora, tmp_path_factory):
    """A corpus of 11 pairs in shards of 4, drawn without interruption; not to be changed."""
    return corpora.draw(tmp_path_factory.mktemp("straight") / "corpus")
