"""`python -m l2p_kernels compile | roofline | count | bench`."""

import importlib
import os
import subprocess
import sys

VERBS = {
    "compile": ("aot", "compile every shipped kernel ahead of time and check what it uses"),
    "roofline": (
        "roofline",
        "operations, bytes and the floor time they imply on four GPUs (counts, not timings)",
    ),
    "count": ("counts", "instructions of patch attention from its SASS, and a model's estimate of its time"),
    "bench": ("patch_attention.bench", "time every implementation on the device at hand"),
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        print("usage: python -m l2p_kernels VERB [options]; --help after a verb explains it")
        for verb, (_, text) in VERBS.items():
            print(f"  {verb:9} {text}")
        return 0 if sys.argv[1:] in ([], ["-h"], ["--help"]) else 2
    verb, arguments = sys.argv[1], sys.argv[2:]
    if (
        verb in ("compile", "count") and os.environ.get("TRITON_INTERPRET") == "1"
    ):  # interpreted kernels cannot be compiled
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return subprocess.run(
            [sys.executable, "-m", "l2p_kernels", *sys.argv[1:]], env=environment
        ).returncode
    return importlib.import_module(f".{VERBS[verb][0]}", "l2p_kernels").main(arguments)


if __name__ == "__main__":
    sys.exit(main())
