"""`l2p import` of PiD's files: what a folder keeps, and every malformed file in one line."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from l2p.files import read_json, write_json
from l2p.published.pid import PID_VARIANTS, load_pid, pid_names
from l2p.published.pid_network import PiDNet

from .conftest import randomised

FLUX = "pid-flux-2k"


def published(variant) -> dict[str, torch.Tensor]:
    """A state dictionary as the authors saved it: bf16, every name behind ``net.``."""
    state = randomised(PiDNet(variant.sizes)).state_dict()
    return {f"net.{name}": value.to(torch.bfloat16) for name, value in state.items()}


@pytest.fixture
def file(tiny_pid, tmp_path) -> Path:
    """A tiny ``model_ema_bf16.pth`` in the folder that tells its variant."""
    variant = tiny_pid(FLUX)
    path = tmp_path / variant.file
    path.parent.mkdir(parents=True)
    torch.save(published(variant), path)
    return path


@pytest.mark.parametrize("name", PID_VARIANTS)
def test_every_variant_comes_in_by_its_own_name(name, tiny_pid, tmp_path, l2p):
    variant = tiny_pid(name)
    path = tmp_path / variant.file
    path.parent.mkdir(parents=True)
    state = published(variant)
    torch.save(state, path)
    code, out, err = l2p("import", path, "--out", tmp_path / "made")
    assert code == 0, err
    assert name in out and "not commercially" in out and "NSCLv1" in out
    saved = load_file(tmp_path / "made" / "model.safetensors")
    assert saved.keys() == pid_names(variant).keys()
    assert all(
        torch.equal(saved[key], state[f"net.{key}"]) and saved[key].dtype == torch.bfloat16 for key in saved
    )
    config = read_json(tmp_path / "made" / "config.json")
    assert (
        config["kind"] == "pid-published" and config["variant"] == name and config["non_commercial"] is True
    )
    assert config["source"]["name"] == "nvidia/PiD" and "non-commercial" in config["source"]["license"]
    assert config["noising"] == ("variance-preserving" if "sdxl" in name else "flow")
    assert "Not for commercial use" in (tmp_path / "made" / "README.md").read_text()
    decoder = load_pid(tmp_path / "made")
    rows = 1 if "flux2" in name else 2
    latents = torch.zeros(1, variant.sizes.latent_channels, rows, rows)
    pictures = decoder.decode(latents, 0.2, num_inference_steps=1)
    assert pictures.shape == (1, 3, rows * decoder.factor, rows * decoder.factor) and pictures.std() > 0


def test_safetensors_without_the_prefix_are_the_same(file, tmp_path, l2p):
    state = {name.removeprefix("net."): t for name, t in torch.load(file, weights_only=True).items()}
    save_file(state, tmp_path / "converted.safetensors")
    for source, extra in ((file, []), (tmp_path / "converted.safetensors", ["--variant", FLUX])):
        assert (
            l2p("import", source, "--out", tmp_path / "made", *extra)[0] == 0
        )  # the second replaces the first
        saved = load_file(tmp_path / "made" / "model.safetensors")
        assert all(torch.equal(saved[name], state[name]) for name in state)
    code, _, err = l2p("import", tmp_path / "converted.safetensors", "--out", tmp_path / "made")
    assert code == 2 and "say which it is with --variant" in err


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/l2p-pickle-was-run"),))


def spoiled(path: Path, kind: str) -> None:
    if kind == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "code in a zip":
        torch.save({"net.y_pos_embedding": Evil()}, path)
    elif kind == "code":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "no zip of torch":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.txt", "a")
        path.write_bytes(buffer.getvalue())
    elif kind == "a list":
        torch.save([torch.zeros(1)], path)
    elif kind == "nested":
        torch.save({"net": {"a": torch.zeros(1)}}, path)
    elif kind == "sparse":
        torch.save({"net.a": torch.eye(2).to_sparse()}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "is broken or cut short"),
        ("empty", "is broken or cut short"),
        ("text", "is refused: it holds more than tensors, or is no PyTorch file, and nothing in it is run"),
        ("code in a zip", "is refused: it holds more than tensors"),
        ("code", "is refused: it holds more than tensors"),
        ("no zip of torch", "is broken or cut short"),
        ("a list", "holds a list, expected tensors by name"),
        ("nested", "holds more than tensors: net; expected tensors by name"),
        ("sparse", "holds more than tensors: net.a; expected tensors by name"),
    ],
)
def test_files_that_are_no_weights(kind, message, file, tmp_path, l2p):
    spoiled(file, kind)
    code, out, err = l2p("import", file, "--out", tmp_path / "made")
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "made").exists() and not Path("/tmp/l2p-pickle-was-run").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("net.pixel_blocks.1.norm2.weight"), f"do not fit the variant {FLUX}; missing: pixel_blocks.1.norm2.weight"),
        (lambda s: s.update({"net.extra": torch.zeros(1)}), "unexpected: extra"),
        (lambda s: s.update({"fake_score.x": torch.zeros(1)}), "missing: y_pos_embedding"),
        (lambda s: s.update({"net.final_layer.linear.bias": torch.zeros(4)}), r"misshapen: final_layer.linear.bias ([4] for [3])"),
        (lambda s: s.update({"net.final_layer.linear.bias": torch.zeros(3, dtype=torch.int64)}), "of a wrong dtype: final_layer.linear.bias (torch.int64"),
        (lambda s: s.update({"net.final_layer.linear.bias": torch.full((3,), torch.inf)}), "final_layer.linear.bias holds NaN or infinity"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(spoil, message, file, tmp_path, l2p):
    state = torch.load(file, weights_only=True)
    spoil(state)
    torch.save(state, file)
    code, _, err = l2p("import", file, "--out", tmp_path / "made")
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".made*"))


def test_wrong_variants(file, tiny_pid, tmp_path, l2p):
    tiny_pid("pid-sdxl-2kto4k")
    code, _, err = l2p("import", file, "--out", tmp_path / "made", "--variant", "pid-sdxl-2kto4k")
    assert (
        code == 2 and "do not fit the variant pid-sdxl-2kto4k; misshapen: lq_proj.latent_proj.0.weight" in err
    )
    code, _, err = l2p("import", file, "--out", tmp_path / "made", "--variant", "pid-flux")
    assert code == 2 and "no variant 'pid-flux', expected one of l2p-1k, l2p-4k, pid-flux-2k" in err
    teacher = tmp_path / "PiD_v1pt5_res2kto4k_sr4x_official_flux_undistilled"
    file.parent.rename(teacher)
    code, _, err = l2p("import", teacher / file.name, "--out", tmp_path / "made")
    assert code == 2 and "an undistilled PiD" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.pth", "--out", "x"], "no file 'nowhere.pth': expected a file, or USER/NAME:FILE"),
        (["nvidia/PiD", "--out", "x"], "no file 'nvidia/PiD'"),
        (["nvidia/PiD:pid-flux", "--out", "x"], "nvidia/PiD has no weights 'pid-flux': expected pid-flux-2k"),
        (["nvidia/PiD:*.pth", "--out", "x"], "nvidia/PiD has no weights '*.pth'"),
        (["nvidia/PiD:../a.pth", "--out", "x"], "nvidia/PiD has no weights '../a.pth'"),
        (["someone/else:model", "--out", "x"], "expected a file that ends in .safetensors"),
        (
            ["nvidia/PiD:pid-flux-2k", "--out", "x"],
            "HF_HUB_OFFLINE is set and nvidia/PiD is not in the Hub's cache",
        ),
        (["{folder}", "--out", "x"], "is a folder, expected one of its files"),
        (["{file}"], "give a file or USER/NAME:FILE, and --out FOLDER"),
        (["{file}", "--out", "{folder}"], "holds files that `l2p import` did not write"),
        (["{file}", "--out", "x", "--text-encoder", "y"], "keeps no text encoder: leave out --text-encoder"),
        (["--keys", "pid"], "no variant 'pid', expected one of l2p-1k"),
    ],
)
def test_words_that_do_not_make_sense(words, message, file, tmp_path, l2p, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = l2p("import", *(w.format(file=file, folder=file.parent) for w in words))
    assert code == 2 and message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "is no imported PiD"),
        ({"format_version": 2}, "has format 2, this l2p reads 1"),
        ({"network": {}}, "is broken (expected the sizes"),
        ({"times": [0.0, 0.5]}, "is broken (times"),
        ({"times": None}, "is broken"),
    ],
)
def test_folders_that_were_changed(change, message, file, tmp_path, l2p):
    from l2p.errors import UserError

    assert l2p("import", file, "--out", tmp_path / "made")[0] == 0
    path = tmp_path / "made" / "config.json"
    write_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(UserError) as error:
        load_pid(tmp_path / "made")
    assert message in str(error.value)


def test_list_and_keys(l2p):
    code, out, _ = l2p("import", "--list")
    assert code == 0 and len(out.splitlines()) == len(PID_VARIANTS) + 2 and "non-commercial" in out
    code, out, _ = l2p("import", "--keys", "pid-flux2-2kto4k-v1.5")
    assert code == 0 and out.splitlines()[-1] == "461 tensors, 1,400,346,771 values"
    assert "net.lq_proj.latent_proj.0.weight" in out and "[1024, 32, 3, 3]" in out
