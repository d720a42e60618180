"""`l2p import USER/NAME:FILE` through the Hub's real client, against a Hub on this machine."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from l2p.files import read_json
from l2p.published.l2p_weights import names
from l2p.published.pid_network import PiDNet
from l2p.students.student import PixelStudent
from tests.hub.conftest import hub  # noqa: F401
from tests.hub.local_hub import Repo

from .conftest import randomised


def put(hub, repo: str, files: dict[str, bytes]) -> str:  # noqa: F811
    hub.repos[repo] = Repo()
    return hub.repos[repo].commit("main", files)


def test_a_variants_name_stands_for_its_file(l2p, hub, tiny_pid, tmp_path):  # noqa: F811
    variant = tiny_pid("pid-flux-2kto4k-v1.5")
    state = {f"net.{k}": v.bfloat16() for k, v in randomised(PiDNet(variant.sizes)).state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    other = "checkpoints/elsewhere/model_ema_bf16.pth"
    commit = put(hub, "nvidia/PiD", {f: (tmp_path / "a.pth").read_bytes() for f in (variant.file, other)})
    code, out, err = l2p("import", "nvidia/PiD:pid-flux-2kto4k-v1.5", "--out", tmp_path / "made")
    assert code == 0 and "not commercially" in out, err
    source = read_json(tmp_path / "made" / "config.json")["source"]
    assert (source["file"], source["revision"], source["fetched_from_hub"]) == (variant.file, commit, True)
    assert not hub.count("GET", f"/nvidia/PiD/resolve/.*{other}")  # that file alone was fetched
    code, _, err = l2p("import", f"nvidia/PiD@main:{other}", "--out", tmp_path / "made")
    assert code == 2 and "say which it is with --variant" in err
    code, _, err = l2p("import", "nvidia/PiD:no.pth", "--out", tmp_path / "made")
    assert code == 2 and "holds no file no.pth" in err


@pytest.mark.parametrize(("card", "license"), [("license: cc-by-4.0", "cc-by-4.0"), ("", "apache-2.0")])
def test_the_pages_licence_wins(card, license, l2p, hub, tiny_l2p, tmp_path):  # noqa: F811
    variant = tiny_l2p("l2p-1k")
    state = randomised(PixelStudent(variant.spec())).state_dict()
    data = save({name: state[own].bfloat16() for name, (own, _) in names(variant).items()})
    commit = put(hub, variant.repo, {variant.file: data, "README.md": f"---\n{card}\n---\n".encode()})
    code, out, err = l2p("import", f"{variant.repo}:l2p-1k", "--out", tmp_path / "made")
    assert code == 0 and f"licence: {license}" in out, err
    source = read_json(tmp_path / "made" / "config.json")["source"]
    assert (source["name"], source["revision"], source["license"]) == (variant.repo, commit, license)
