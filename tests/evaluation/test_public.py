"""`l2p.evaluation` offers every figure by name and loads nothing until it is used."""

import subprocess
import sys

import pytest

import l2p.evaluation


def test_every_name_is_there():
    for name in l2p.evaluation.__all__:
        assert getattr(l2p.evaluation, name).__doc__, name
    assert set(dir(l2p.evaluation)) >= {"seam_index", "color_drift", "invention_map"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = l2p.evaluation.nothing


def test_importing_it_loads_nothing_heavy():
    script = (
        "import sys, l2p.evaluation; print({'torch', 'skimage', 'scipy', 'torchmetrics'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
