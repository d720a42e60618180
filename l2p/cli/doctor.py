"""What is installed, on which device, what will be slow, and the fix. Exit code 1 when something needed is broken."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from l2p.errors import UserError
from l2p.extras import install_hint

EXAMPLES = """\
examples:
  l2p doctor
  l2p doctor --json
"""

OPTIONAL = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "peft": "lora",
    "torchao": "quantize",
    "datasketch": "corpus",
    "py3langid": "corpus",
    "pyarrow": "corpus",
    "pytest": "dev",
    "hypothesis": "dev",
    "ruff": "dev",
}
OK, SLOW, MISSING, BROKEN = "ok", "slow", "optional", "broken"
STYLES = {OK: "green", SLOW: "yellow", MISSING: "dim", BROKEN: "bold red"}
REINSTALL = f"reinstall: {install_hint()} --force-reinstall"
DISK_NEEDED = 5e9  # bytes: a corpus, checkpoints and reports of the quickstart, with room


@dataclass
class Finding:
    """One line of the diagnosis; `fix` is empty where there is nothing to do."""

    name: str
    value: str
    state: str = OK
    fix: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def run(args: argparse.Namespace) -> int:
    findings = examine()
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    return int(any(finding.state == BROKEN for finding in findings))


def examine() -> list[Finding]:
    """Every finding; a probe that fails is itself a finding, never an exception."""
    findings = []
    for name, probe in PROBES.items():
        try:
            findings += probe()
        except Exception as error:  # the doctor is asked exactly when things are broken in unforeseen ways
            reason = " ".join(str(error).split()) or type(error).__name__
            findings.append(Finding(name, reason, BROKEN, "" if isinstance(error, UserError) else REINSTALL))
    return findings


def _python() -> list[Finding]:
    return [Finding("python", f"{platform.python_version()} on {platform.platform()}, {sys.executable}")]


def _packages() -> list[Finding]:
    from packaging.requirements import Requirement

    findings = []
    for text in ["latent2pixel", *(metadata.requires("latent2pixel") or [])]:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        fix = f"pip install '{requirement}'"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(requirement.name, "not installed", BROKEN, fix))
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        findings.append(
            Finding(requirement.name, version) if fits else Finding(requirement.name, version, BROKEN, fix)
        )
    for name, extra in OPTIONAL.items():
        try:
            findings.append(Finding(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            fix = f"if you want it: {install_hint(extra)}"
            findings.append(Finding(name, "not installed", MISSING, fix))
    return findings


def _device() -> list[Finding]:
    import torch

    from l2p import runtime

    device = runtime.pick_device()
    if device.type == "cuda":
        found = []
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            found.append(Finding(f"cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    elif device.type == "mps":
        found = [Finding("device", "mps (Apple GPU)")]
    else:
        fix = "the quickstart is made for it; a teacher of real size wants a CUDA GPU"
        found = [Finding("device", "cpu: no GPU that torch can use", SLOW, fix)]
    if runtime.has_fast_bf16(device):
        found.append(Finding("bf16", f"in hardware: dtype auto is bf16 on {device.type}"))
    else:
        fix = "nothing to set; a CPU with avx512_bf16 or amx_bf16, or a GPU from Ampere on, is about 1.7 times as fast"
        found.append(Finding("bf16", f"not in hardware: dtype auto is fp32 on {device.type}", SLOW, fix))
    return found


def _threads() -> list[Finding]:
    from l2p import runtime

    cores, asked = runtime.usable_cores(), os.environ.get("OMP_NUM_THREADS")
    text = f"{asked or cores} on {cores} usable cores" + (" (OMP_NUM_THREADS)" if asked else "")
    if asked and not asked.isdecimal():
        return [Finding("threads", f"OMP_NUM_THREADS is {asked!r}", BROKEN, "unset OMP_NUM_THREADS")]
    if asked and int(asked) > cores:
        return [
            Finding(
                "threads", text, SLOW, "more threads than cores wait for each other: unset OMP_NUM_THREADS"
            )
        ]
    if asked and int(asked) < cores:
        return [Finding("threads", text, SLOW, "cores stand idle: unset OMP_NUM_THREADS")]
    return [Finding("threads", text)]


def _attention() -> list[Finding]:
    """Asks the kernel itself which path it takes here, and runs it once, very small."""
    import torch
    from l2p_kernels import patch_attention
    from l2p_kernels.dispatch import choose
    from l2p_kernels.patch_attention.api import IMPLS

    from l2p import runtime

    q = torch.zeros(1, 8, 8, 1, 16, device=runtime.pick_device())
    patch_attention(q, q, q, tile=8, halo=4)
    return [Finding("patch attention", f"impl={choose('patch_attention', 'auto', IMPLS, q)!r}")]


def _disk() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    low = free < DISK_NEEDED
    fix = (
        f"free some, or set output_dir to another disk: a run wants {DISK_NEEDED / 1e9:.0f} GB" if low else ""
    )
    return [Finding("disk", f"{free / 1e9:,.0f} GB free at {Path.cwd()}", SLOW if low else OK, fix)]


def _hub() -> list[Finding]:
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    words = [
        f"{models} models at {cache}",
        "a token is set" if get_token() else "no token (gated models need one)",
    ]
    if constants.HF_HUB_OFFLINE:
        words.append("HF_HUB_OFFLINE is set: nothing is downloaded")
    return [Finding("Hub cache", ", ".join(words))]


def _bundled() -> list[Finding]:
    from l2p.evaluation.judge import load_judge
    from l2p.teachers import BUNDLED

    missing = not (BUNDLED / "landscapes" / "model_index.json").is_file()
    teacher = (
        Finding("bundled teacher", "missing", BROKEN, REINSTALL)
        if missing
        else Finding("bundled teacher", "landscapes")
    )
    load_judge()
    return [teacher, Finding("bundled judge", "loads")]


PROBES: dict[str, Callable[[], list[Finding]]] = {
    "python": _python,
    "packages": _packages,
    "device": _device,
    "threads": _threads,
    "patch attention": _attention,
    "disk": _disk,
    "Hub cache": _hub,
    "bundled models": _bundled,
}


def _print(findings: list[Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from l2p.console import Console

    table = Table("what")
    for title in ("found", "", "what to do"):
        table.add_column(title, overflow="fold")
    for item in findings:
        state = f"[{STYLES[item.state]}]{item.state}[/]"
        table.add_row(item.name, escape(item.value), state, escape(item.fix))
    console = Console(highlight=False)
    console.print(table)
    broken = [item.name for item in findings if item.state == BROKEN]
    console.print(f"broken: {', '.join(broken)}" if broken else "everything needed is here", markup=False)
