"""The border: help without heavy packages, one line and the right exit code for every foreseeable failure."""

from __future__ import annotations

import errno
import subprocess
import sys
import time

import pytest

from l2p.cli import main as cli
from l2p.errors import UserError

BAD = {
    "no such verb": (["distil"], "no verb 'distil': did you mean distill?"),
    "an unknown option": (["generate", "x", "y", "--heigt", "8"], "unrecognized arguments: --heigt 8"),
    "no arguments": (["distill"], "the following arguments are required: RECIPE"),
    "a recipe that is not there": (["distill", "nowhere.yaml"], "recipe nowhere.yaml does not exist"),
    "a folder that is no student": (["generate", ".", "a house"], "is no student"),
    "a folder that is not there": (["info", "nowhere"], "no student at nowhere"),
    "height 7": (["generate", ".", "a house", "--height", "7"], "--height is 7, expected a multiple of 8"),
    "a negative width": (
        ["generate", ".", "a house", "--width", "-64"],
        "--width is -64, expected a multiple of 8",
    ),
    "an evaluation of one": (
        ["evaluate", ".", "--num-images", "1"],
        "--num-images is 1, expected 2 to 1000000",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_exit_code_2(l2p, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    argv, message = BAD[case]
    code, out, err = l2p(*argv)
    assert code == 2 and out == ""
    assert err.startswith("l2p: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_mistakes_as_a_shell_sees_them(l2p_process, tmp_path):
    (tmp_path / "typo.yaml").write_text("name: x\none_step:\n  learning_rat: 1e-3\n")
    for argv, message in (
        (
            ["distill", tmp_path / "typo.yaml"],
            "typo.yaml:3: unknown key one_step.learning_rat: did you mean one_step.lear",
        ),
        (["generate", tmp_path, "a house"], "is no student"),
        (["generate", tmp_path, "a house", "--height", 7], "--height is 7"),
        (["generate", tmp_path, "a house", "--width", -64], "--width is -64"),
    ):
        code, out, err = l2p_process(*argv)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_help_is_quick_loads_nothing_heavy_and_names_every_verb(l2p_process):
    start = time.process_time()
    code, out, err = l2p_process("--help")
    assert code == 0 and err == "" and all(verb in out for verb in cli.VERBS)
    assert time.process_time() - start < 0.5
    script = "import sys; from l2p.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += "print(sorted({'torch', 'omegaconf', 'rich', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    for argv in (["--help"], *([verb, "--help"] for verb in cli.VERBS)):
        done = subprocess.run(
            [sys.executable, "-c", script, *argv], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == "[]", argv
        if len(argv) > 1:
            assert f"\n  l2p {argv[0]}" in done.stdout.split("examples:")[1]


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == "l2p 0.1.0\n"


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("first\nsecond"), "first second"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/x"),
            "no space left on the device: /runs/x: free some",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left on the device: free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "permission denied: /root/x"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
            "no such file or directory: a.txt",
        ),
        (OutOfMemoryError("CUDA out of memory. Tried ..."), "out of memory: take a smaller picture"),
        (MemoryError(), "out of memory"),
        (ModuleNotFoundError("No module named 'wandb'", name="wandb"), "the package wandb is not installed"),
    ],
)
def test_an_error_from_within_is_explained(l2p, monkeypatch, error, message):
    import l2p.cli.doctor as verb

    def fail(args):
        raise error

    monkeypatch.setattr(verb, "run", fail)
    code, _, err = l2p("doctor")
    assert code == 2 and err.startswith(f"l2p: {message}") and err.count("\n") == 1
    monkeypatch.setenv("L2P_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_a_bug_is_not_hidden(monkeypatch):
    import l2p.cli.doctor as verb

    def fail(args):
        raise KeyError("a bug")

    monkeypatch.setattr(verb, "run", fail)
    with pytest.raises(KeyError):
        cli.main(["doctor"])


@pytest.mark.parametrize(
    ("verb", "hint"),
    [("doctor", "stopped\n"), ("distill", "stopped; what is done is kept: run the same command again")],
)
def test_ctrl_c_is_one_line_and_130(l2p, monkeypatch, verb, hint):
    import importlib

    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"l2p.cli.{verb}"), "run", stop)
    code, _, err = l2p(verb, *(["recipe.yaml"] if verb == "distill" else []))
    assert code == 130 and err.startswith(f"l2p: {hint}") and err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m l2p.cli.main doctor --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "[\n" and done.stderr == ""
