"""An option that would not be used is refused in one line, before anything is read, made or overwritten."""

from __future__ import annotations

import argparse
from importlib import import_module

import pytest
from PIL import Image

from l2p.cli.main import VERBS
from l2p.cli.options import Mode, parse

DECODE = ("decode", "a.png")
PROMPT = ("decode", "a red house", "--teacher", "landscapes")
FOLDERS = ("evaluate", "one", "--against", "two")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("1.png", "2.png"):
            Image.new("RGB", (40, 40)).save(tmp_path / folder / name)
    Image.new("RGB", (40, 40)).save("a.png")
    return tmp_path


def folder_state(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "option"),
    [
        *(((*DECODE, f"--{name}", value), f"--{name}") for name, value in [
            ("height", 64), ("width", 64), ("teacher-steps", 4), ("guidance-scale", 2), ("stop-at-sigma", 0.3)]),
        ((*PROMPT, "--sigma", 0.2), "--sigma"),
        ((*PROMPT, "--prompt", "b"), "--prompt"),
        *(((*DECODE, "--decoder", "vae", f"--{name}", value), f"--{name}") for name, value in [
            ("weights", "w"), ("steps", 2), ("seed", 3), ("memory-budget", "1GB"), ("text-encoder", "t"), ("prompt", "b")]),
        *(((*FOLDERS, f"--{name}", value), f"--{name}") for name, value in [
            ("dtype", "fp32"), ("device", "cpu"), ("pid", "p"), ("paths", "l2p")]),
        (("evaluate", "landscapes-128", "--pid", "p"), "--pid"),
        (("evaluate-decoder", "--stop-images", 4), "--stop-images"),
        (("bench", "--paths", "l2p", "--student-steps", 4), "--student-steps"),
        (("bench", "--paths", "l2p", "--teacher-steps", 4), "--teacher-steps"),
        (("bench", "--paths", "vae", "--memory-budget", "1GB"), "--memory-budget"),
        (("import", "--list", "--out", "o"), "--out"),
        (("import", "--list", "x.pth"), "FILE"),
        (("import", "a.png", "--out", "o", "--endpoint", "e"), "--endpoint"),
        (("synthesize", "--print-taxonomy", "--json"), "--json"),
        (("synthesize", "r.yaml", "--print-taxonomy"), "RECIPE"),
        (("review", "one", "--summary", "--num-images", 3), "--num-images"),
        (("review", "one", "--against", "two", "--json"), "--json"),
        (("review", "one", "--against", "two", "--dtype", "fp32"), "--dtype"),
    ],
)  # fmt: skip
def test_an_option_of_another_mode_is_refused(l2p, here, words, option):
    before = folder_state(here)
    code, out, err = l2p(*words)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"l2p: {option}" in err and "would not be used here" in err
    assert folder_state(here) == before


@pytest.mark.parametrize(
    "words",
    [
        ("import", "--list", "--keys", "pid-flux-2k"),
        ("synthesize", "r.yaml", "--dry-run", "--check"),
        ("distill", "quickstart", "--dry-run", "--resume", "never"),
        ("grow", "landscapes-512", "--tiny", "--resume", "never"),
        ("train-pid", "pid-landscapes", "--tiny", "--resume", "never"),
        ("train-teacher", "teacher-landscapes", "--pictures-only", "--resume"),
    ],
)
def test_options_that_contradict_one_another_are_refused(l2p, here, words):
    code, _, err = l2p(*words)
    assert code == 2 and "contradict each other" in err


@pytest.mark.parametrize(
    "words",
    [
        (*DECODE, "--out", "a.png"),
        (*DECODE, "--again", "--out", "."),
        ("decode", "one", "--again", "--out", "one"),
        (*FOLDERS, "--json", "one/1.png"),
        (*FOLDERS, "--out", "e", "--json", "e/report.html"),
        (*FOLDERS, "--out", "two"),
        ("bench", "--json", "b.png", "--plot", "b.png"),
    ],
)
def test_an_output_that_is_an_input_is_refused(l2p, here, words):
    before = folder_state(here)
    code, _, err = l2p(*words)
    assert code == 2 and ("reads or writes otherwise" in err or "are both" in err)
    assert folder_state(here) == before


def parser_of(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    import_module(f"l2p.cli.{verb.replace('-', '_')}").configure(parser)
    return parser


@pytest.mark.parametrize("verb", VERBS)
def test_modes_name_options_that_there_are(verb):
    names = {action.dest for action in parser_of(verb)._actions}
    modes = [
        m for m in vars(import_module(f"l2p.cli.{verb.replace('-', '_')}")).values() if isinstance(m, Mode)
    ]
    assert not [option for mode in modes for option in mode.options if option not in names]


def test_given_are_those_on_the_command_line_also_with_the_default_value():
    args = parse(parser_of("decode"), ["a", "--scale", "4", "--seed", "0", "--prompt-input=b"])
    assert args.given == {
        "inputs": "INPUT",
        "scale": "--scale",
        "seed": "--seed",
        "prompt_input": "--prompt-input",
    }
    assert (args.steps, args.inputs, args.prompt_input) == (None, ["a"], ["b"])


NO_PROMPTS = ("pp.csv#caption", "nope.csv#caption", "prompts.md", "list.xlsx", "p.txt.gz", "hub:a/b", "nope.sft",
              "lat.safetensor", "https://a.b/c", "one#caption")  # fmt: skip


@pytest.mark.parametrize("text", [*NO_PROMPTS, "one"])
def test_what_names_a_file_a_folder_or_a_source_is_no_prompt(l2p, here, text):
    (here / "pp.csv").write_text("caption\na\n")
    code, out, err = l2p("generate", "landscapes-128", text, "--out", "o")
    assert (code, out) == (2, "") and f"--prompt {text!r}" in err
    if text != "one":  # a folder to decode
        code, out, err = l2p("decode", text, "--teacher", "landscapes", "--out", "o")
        assert (code, out) == (2, "") and (f"--prompt-input {text!r}" in err or "is a table" in err)


@pytest.mark.parametrize(
    "text", ["a red house", "a house, 3.5 m high", "e.g.", "dusk: a lake", "#3 of a series", "1:2"]
)
def test_words_are_prompts(text):
    from l2p.files import names_input

    assert not names_input(text)
