"""`python -m l2p_kernels bench [OPERATOR]`: times every path on the device at hand, after checking that it is right.

Rounds are interleaved (one run of every path, then the next round), so that other load falls on all alike; the table
gives medians with the 20th and 80th percentile. Where a path's result is wrong nothing is timed, and the command fails.
Without an operator all of them run, at their default sizes.
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPERATORS = ("patch_attention", "adaln")


@dataclass
class Contest:
    """What an operator's `bench.py` offers for timing. Every path returns one tensor."""

    title: str
    inputs: list[Tensor]  # what the backward pass is asked for
    paths: dict[str, Callable[[], Tensor]]  # the operator; the first is what the others must equal
    others: dict[str, Callable[[], Tensor]] = field(default_factory=dict)  # other operators, for scale
    errors: dict[str, float] = field(default_factory=dict)  # of each path on a small case, against fp64


def relative_rms(got: Tensor, wanted: Tensor) -> float:
    """`|got - wanted| / |wanted|` in fp64."""
    wanted = wanted.double()
    return ((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300)).item()


def worst_error(call: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """The largest relative error of `call(*inputs)` and of its gradients against `reference` in fp64."""

    def results(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
        inputs = [x.detach().requires_grad_() for x in inputs]
        out = function(*inputs)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        return [out, *torch.autograd.grad(out, inputs, grad)]

    exact = results(reference, [x.double() for x in inputs])
    return max(relative_rms(a, b) for a, b in zip(results(call, inputs), exact, strict=True))


def our_impls(cpu_path: str, device: str) -> list[str]:
    return [cpu_path, "triton"] if device == "cuda" else [cpu_path]


def seconds(run: Callable[[], object], device: str) -> float:
    """One run, waited for; on a GPU the median of `triton.testing.do_bench`, which clears the L2 before each."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(run, return_mode="median") / 1e3
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fault(contest: Contest, dtype: torch.dtype) -> str | None:
    """What is wrong with a path, or None."""
    for name, error in contest.errors.items():
        if error > TOLERANCE[dtype]:
            return f"{name} is wrong (relative error {error:.1e}); nothing is timed"
    first, *rest = contest.paths
    wanted = contest.paths[first]()
    for name in rest:
        if (error := relative_rms(contest.paths[name](), wanted)) > 2 * TOLERANCE[dtype]:
            return f"{name} differs from {first} by {error:.1e}; nothing is timed"
    return None


def report(contest: Contest, device: str, rounds: int, backward: bool) -> None:
    """Times the paths and prints the table."""
    runs = contest.paths | {f"{name} (*)": run for name, run in contest.others.items()}
    grad = torch.randn_like(contest.paths[next(iter(runs))]())

    def timed(run: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(run(), contest.inputs, grad)) if backward else run

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(timed(run), device))
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    what = "forward + backward" if backward else "forward"
    print(f"{contest.title}, {what}, {where}, torch {torch.__version__}")
    print(f"{'path':16} {'median ms':>10} {'p20':>9} {'p80':>9}")
    for name, found in times.items():
        low, high = (statistics.quantiles(found, n=5)[i] if len(found) > 1 else found[0] for i in (0, 3))
        print(f"{name:16} {statistics.median(found) * 1e3:10.2f} {low * 1e3:9.2f} {high * 1e3:9.2f}")
    if contest.others:
        print("(*) another operator: here for scale")


def main(arguments: list[str]) -> int:
    """Checks, times, prints; 1 where a path is wrong."""
    named = bool(arguments) and arguments[0] in OPERATORS
    operators = arguments[:1] if named else list(OPERATORS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    status = 0
    for operator in operators:
        module = importlib.import_module(f".{operator}.bench", "l2p_kernels")
        usage = f"python -m l2p_kernels bench {operator}" if named else "python -m l2p_kernels bench"
        choices = ", ".join(OPERATORS)
        parser = argparse.ArgumentParser(
            prog=usage if named else f"{usage} [OPERATOR]",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=None
            if named
            else f"OPERATOR: {choices}. With one named first, --help lists its sizes too.",
        )
        parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
        parser.add_argument("--rounds", type=int, default=10)
        parser.add_argument("--backward", action="store_true", help="time forward and backward together")
        if named:
            module.add_arguments(parser)
            options = parser.parse_args(arguments[1:])
        else:
            options = parser.parse_args(arguments)
            sizes = argparse.ArgumentParser()
            module.add_arguments(sizes)
            sizes.parse_args([], options)
        dtype = DTYPES[options.dtype]
        torch.manual_seed(0)
        try:
            contest = module.contest(options, device, dtype)
        except ValueError as error:
            parser.error(str(error))
        if wrong := fault(contest, dtype):
            print(f"{operator}: {wrong}", file=sys.stderr)
            status = 1
            continue
        report(contest, device, options.rounds, options.backward)
    return status
