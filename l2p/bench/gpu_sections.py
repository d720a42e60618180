"""Sections of `make gpu-proof` that measure in this process: `python -m l2p.bench.gpu_sections NAME --work FOLDER`.

Each writes `FOLDER/NAME.json` after every figure, so that what was found before a limit is kept. A measurement that fails, or
does not fit the card's memory, is a figure that says so. `--device cpu --small` is a dry run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # relative RMS of an operator
GRID, HEADS, HEAD_DIM, TILE, HALO = 512, 2, 64, 8, 4  # attention of a 4096 px `base` picture
PROMPT = "a red house by a lake at dusk, number 1"


class Findings:
    """What a section found, on the disk as soon as it is known."""

    def __init__(self, name: str, device: str, small: bool, work: Path) -> None:
        self.device, self.small, self.work = torch.device(device), small, work
        self.on_gpu = self.device.type == "cuda"
        self.path, self.found = work / f"{name}.json", {}

    def put(self, key: str, value: Any) -> None:
        self.found[key] = value
        print(key, json.dumps(value, default=str)[:300], flush=True)
        self.path.write_text(json.dumps(self.found, indent=1, default=str))

    def figure(
        self, key: str, figure: str, of_floor: float | None = None, note: str = "", **more: Any
    ) -> None:
        """A row of the table; `of_floor` is floor / measured."""
        self.put(key, {"figure": figure, "of_floor": of_floor, "note": note, **more})

    @contextlib.contextmanager
    def part(self, key: str) -> Iterator[None]:
        """One measurement, whose failure is its figure."""
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            free = torch.cuda.mem_get_info(self.device)[0] / 1e9
            self.figure(key, "does not fit", note=f"{free:.1f} GB free")
            torch.cuda.empty_cache()
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.figure(key, "failed", note=reason)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def ms(self, run: Callable[[], Any], rounds: int = 20, warm_up: int = 3, limit: float = 4.0) -> float:
        """Median milliseconds of the host's clock from launch to end, of at most `rounds` runs within `limit` seconds."""
        for _ in range(1 if self.small else warm_up):
            run()
        times, end = [], time.perf_counter() + limit
        while not times or (len(times) < (1 if self.small else rounds) and time.perf_counter() < end):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)

    def timed(self, key: str, run: Callable[[], Any], floor_ms: float | None = None, **options: Any) -> None:
        with self.part(key):
            took = self.ms(run, **options)
            self.figure(key, f"{took:.3f} ms", floor_ms and floor_ms / took, milliseconds=took)


def relative(got: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))


def env(to: Findings) -> None:
    """Versions, the card, and its ceilings: what it copies and multiplies in a second."""
    import importlib.metadata as metadata

    versions = {}
    for name in ("torch", "triton", "torchvision", "diffusers", "transformers", "lightning", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    to.put("versions", versions)
    if to.on_gpu:
        card = torch.cuda.get_device_properties(to.device)
        to.put(
            "card",
            {
                "name": card.name,
                "gib": round(card.total_memory / 2**30, 1),
                "multiprocessors": card.multi_processor_count,
                "capability": f"{card.major}.{card.minor}",
            },
        )
    count, side = (2**16, 128) if to.small else (2**28, 8192)
    ceilings = {}
    with to.part("ceilings"):
        x, y = (torch.zeros(count, device=to.device) for _ in "xy")
        ceilings["copy TB/s"] = round(8 * count / to.ms(lambda: y.copy_(x)) / 1e9, 3)
        a, b = (torch.randn(side, side, device=to.device, dtype=torch.bfloat16) for _ in "ab")
        ceilings["bf16 TFLOP/s"] = round(2 * side**3 / to.ms(lambda: a @ b) / 1e9, 2)
        to.put("ceilings", ceilings)
    with to.part("50 MB to the host"):
        there = torch.zeros(50 << (10 if to.small else 20), dtype=torch.uint8, device=to.device)
        host = torch.empty(there.shape, dtype=torch.uint8, pin_memory=to.on_gpu)
        took = to.ms(lambda: host.copy_(there, non_blocking=True))
        to.figure("50 MB to the host", f"{took:.2f} ms", note=f"pageable {to.ms(there.cpu):.2f} ms")


def correct(to: Findings) -> None:
    """Every operator on the device against fp64, outputs and gradients, in the number formats that models use."""
    from l2p_kernels import patch_attention, philox_normal
    from l2p_kernels.patch_attention.cases import Case, errors_against_reference

    fast, device = ("triton", str(to.device)) if to.on_gpu else ("windowed", "cpu")
    whole = {"tile": TILE, "halo": HALO, "norm": True, "rope": True}
    cases = [Case(2, 17, 24, heads=2, head_dim=64, **whole), Case(1, 33, 40, heads=1, head_dim=32, **whole)]
    cases += [
        Case(1, 24, 17, heads=3, head_dim=128, **whole),
        Case(1, 9, 21, tile=4, halo=8, heads=1, head_dim=16),
    ]
    for dtype in (torch.bfloat16, torch.float16, torch.float32) if to.on_gpu else (torch.float32,):
        kind = str(dtype).removeprefix("torch.")
        for case in cases[:1] if to.small else cases:
            key = f"attention {kind} {case.height} x {case.width} d{case.head_dim}"
            with to.part(key):
                worst = max(errors_against_reference(case, fast, dtype, device).values())
                verdict = "" if worst <= BOUNDS[dtype] else f"WRONG, at most {BOUNDS[dtype]:g}"
                to.figure(key, f"error {worst:.1e}", note=verdict)
    with to.part("noise of a seed"):
        drawn = philox_normal(torch.empty(100_001, device=to.device), 7, 1, 3).cpu()
        gap = float((drawn - philox_normal(torch.empty(100_001), 7, 1, 3)).abs().max())
        to.figure(
            "noise of a seed", f"differs from the CPU's by {gap:.1e}", note="" if gap <= 2e-6 else "WRONG"
        )
    with to.part("attention of 4096 px"), torch.no_grad():
        q, k, v, full = attention_inputs(to)
        got = [patch_attention(q, k, v, impl=fast, **full) for _ in range(3)]
        same = all(torch.equal(got[0], other) for other in got[1:])
        strided = patch_attention(*torch.stack((q, k, v), dim=3).unbind(3), impl=fast, **full)
        error = relative(got[0], patch_attention(q.float(), k.float(), v.float(), impl="windowed", **full))
        note = f"{'repeatable' if same else 'NOT REPEATABLE'}, strided views {'equal' if torch.equal(strided, got[0]) else 'DIFFER'}"
        to.figure("attention of 4096 px", f"error {error:.1e}", note=note)
    with to.part("compiled whole"), torch.no_grad():

        def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return patch_attention(q * 2, k, v) + 1

        few = [x[:, :16, :24].contiguous() for x in (q, k, v)]
        backend = "inductor" if to.on_gpu else "aot_eager"
        error = relative(torch.compile(block, fullgraph=True, backend=backend)(*few), block(*few))
        to.figure("compiled whole", f"error {error:.1e}")


def attention_inputs(to: Findings) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    n = 16 if to.small else GRID
    dtype = torch.bfloat16 if to.on_gpu else torch.float32
    q, k, v = (torch.randn(1, n, n, HEADS, HEAD_DIM, device=to.device, dtype=dtype) for _ in "qkv")
    weight, pairs = torch.rand(HEAD_DIM, device=to.device) + 0.5, HEAD_DIM // 4
    speed = 100.0 ** -(torch.arange(pairs, device=to.device) / pairs)
    angles = torch.arange(n, device=to.device)[:, None] * speed
    options = {"tile": TILE, "halo": HALO, "q_norm": weight, "k_norm": weight, "rope": (angles, angles)}
    return q, k, v, options


def kernels(to: Findings) -> None:
    """patch_attention at 4096 px of `base` against its floor and beside other ways; noise against the memory."""
    import importlib.util

    from l2p_kernels import patch_attention, philox_normal
    from l2p_kernels.patch_attention import bench
    from l2p_kernels.patch_attention.op import pairs

    q, k, v, full = attention_inputs(to)
    n, fast = q.shape[1], "triton" if to.on_gpu else "windowed"
    path = to.work / "env.json"
    rates = json.loads(path.read_text()).get("ceilings", {}) if path.is_file() else {}
    copy, product = rates.get("copy TB/s") or 3.0, rates.get("bf16 TFLOP/s") or 800
    flops, least = 4 * HEAD_DIM * HEADS * pairs(n, n, TILE, HALO), 4 * q.nbytes
    floor = max(flops / product, least / copy) / 1e9
    to.put("floor", {"gflop": round(flops / 1e9, 2), "mb": round(least / 1e6, 1), "ms": round(floor, 4)})
    plain = {"tile": TILE, "halo": HALO}
    with torch.no_grad():
        to.timed("attention", lambda: patch_attention(q, k, v, impl=fast, **plain), floor)
        to.timed("attention, norm, RoPE", lambda: patch_attention(q, k, v, impl=fast, **full), floor)
        to.timed("unfold + SDPA", lambda: bench.unfold_sdpa(q, k, v, TILE, HALO, columns=False), floor)
        if to.on_gpu:
            to.timed("FlexAttention by tiles", lambda: patch_attention(q, k, v, impl="flex", **plain), floor)
        if to.on_gpu and importlib.util.find_spec("natten"):
            to.timed("NATTEN (another operator)", lambda: bench.natten(q, k, v, TILE, HALO), floor)
    for key, options in (("attention and gradients", plain), ("attention, norm, RoPE and gradients", full)):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        grad = torch.randn_like(q)

        def run(leaves: Any = leaves, options: Any = options, grad: Tensor = grad) -> None:
            torch.autograd.grad(patch_attention(*leaves, impl=fast, **options), leaves, grad)

        to.timed(key, run, 3 * floor, rounds=5, warm_up=1)
    numbers = torch.empty(64 * 64 * 64, device=to.device)
    to.timed("noise of a 4096 px picture", lambda: philox_normal(numbers, 1), numbers.nbytes / copy / 1e9)


def pipeline_of(to: Findings, compiled: bool = False) -> Any:
    """A student of random weights with its text encoder."""
    from l2p.bench.paths import Job, _text_encoder
    from l2p.students import presets
    from l2p.students.pipeline import StudentPipeline

    preset, side = ("tiny", 64) if to.small else ("base", 4096)
    dtype = torch.bfloat16 if to.on_gpu else torch.float32
    kind = "bf16" if to.on_gpu else "fp32"
    student = presets.random_student(preset, side, side, device=to.device, dtype=dtype)
    if compiled:
        student.compile_blocks()
    return StudentPipeline(
        student, _text_encoder(Job("l2p", preset, side, side, device=str(to.device), dtype=kind)), dtype
    )


def step(to: Findings) -> None:
    """A 4096 px picture by its parts, its memory, its waits for the device and its kernels."""
    pipeline = pipeline_of(to)
    student, side = pipeline.student, pipeline.student.spec.height
    words, t = pipeline.text_encoder([PROMPT]).to(to.device), torch.ones(1, device=to.device)

    def text() -> None:
        pipeline.text_encoder.forget()
        pipeline.text_encoder([PROMPT]).to(to.device)

    to.timed("text", text)
    to.timed("noise", lambda: pipeline.noise([1], side, side).latents())
    with to.part("core and head"), torch.no_grad(), pipeline.arithmetic():
        _core_and_head(to, pipeline, words)
    if to.on_gpu:
        torch.cuda.reset_peak_memory_stats(to.device)
    to.timed("prompt to 8 bits", lambda: pipeline.generate_arrays([PROMPT], [1], side, side), rounds=10)
    if not to.on_gpu:
        return
    to.figure("peak memory", f"{torch.cuda.max_memory_allocated(to.device) / 1e9:.2f} GB")
    with to.part("waits"):
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.no_grad(), pipeline.arithmetic():
                student(pipeline.noise([2], side, side).rows(0, side), t, words, torch.zeros_like(t))
            to.figure("waits", "none")
        except RuntimeError as error:
            to.figure("waits", "some", note=str(error).splitlines()[0][:120])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with to.part("kernels of a picture"):
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen_by:
            pipeline.generate_arrays([PROMPT], [3], side, side)
            to.wait()
        events = [e for e in seen_by.key_averages() if str(e.device_type).endswith("CUDA")]
        spent = sum(e.self_device_time_total for e in events) / 1e3
        top = sorted(events, key=lambda e: -e.self_device_time_total)[:15]
        rows = [[e.key[:80], e.count, round(e.self_device_time_total / 1e3, 3)] for e in top]
        to.figure(
            "kernels of a picture",
            str(sum(e.count for e in events)),
            note=f"{spent:.2f} ms of them",
            top=rows,
        )


def _core_and_head(to: Findings, pipeline: Any, words: Any) -> None:
    from l2p.students.tiled_inference import to_levels

    student, side, t = pipeline.student, pipeline.student.spec.height, torch.ones(1, device=to.device)
    x = pipeline.noise([1], side, side).rows(0, side).to(to.device)
    to.timed("core", lambda: student.forward_features(x, t, words, torch.zeros_like(t)))
    features = student.forward_features(x, t, words, torch.zeros_like(t))
    to.timed("head", lambda: student.forward_head(features))
    picture = student.forward_head(features)
    to.timed("8 bits on the host", lambda: to_levels(picture))


def graphs(to: Findings) -> None:
    """The step by a CUDA graph, compiled, and by both; and that a graph draws other inputs as the step does."""
    pipeline = pipeline_of(to)
    student, side = pipeline.student, pipeline.student.spec.height
    words, t = pipeline.text_encoder([PROMPT]).to(to.device), torch.ones(1, device=to.device)

    def eagerly(x: Tensor, captions: Any, network: Any = student) -> Tensor:
        with torch.no_grad(), pipeline.arithmetic():
            return network(x, t, captions, torch.zeros_like(t))

    noise = torch.randn(1, 3, side, side, device=to.device)
    to.timed("step", lambda: eagerly(noise, words))
    if not to.on_gpu:
        to.figure("graph", "skipped", note="no CUDA")
        return
    from l2p.students.graphs import StepGraphs

    for compiled in (False, True):
        key = "compiled, by a graph" if compiled else "by a graph"
        with to.part(key):
            network = pipeline_of(to, True).student if compiled else student
            drawn = StepGraphs(network)

            def replay(x: Tensor = noise, captions: Any = words, drawn: StepGraphs = drawn) -> Tensor:
                with torch.no_grad(), pipeline.arithmetic():
                    return drawn(x, captions)

            began = time.perf_counter()
            replay()
            to.wait()
            to.put(f"{key}: first picture, s", round(time.perf_counter() - began, 2))
            to.timed(key, replay)
            longer = pipeline.text_encoder([PROMPT + ", with a boat and two birds"]).to(to.device)
            error = relative(replay(noise.flip(-1), longer), eagerly(noise.flip(-1), longer, network))
            to.figure(f"{key}: other inputs", f"error {error:.1e}", note=f"{len(drawn._captured)} captured")
            del drawn, replay
            torch.cuda.empty_cache()


def save(to: Findings) -> None:
    """A student of the preset's sizes on the disk, for `l2p generate`."""
    from l2p.students.io import save_student

    pipeline = pipeline_of(to)
    save_student(
        pipeline.student, to.work / "student", pipeline.text_encoder, dtype="bf16" if to.on_gpu else None
    )
    to.put("folder", str(to.work / "student"))


SECTIONS = {f.__name__: f for f in (env, correct, kernels, step, graphs, save)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m l2p.bench.gpu_sections", description=__doc__)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    to = Findings(options.section, options.device, options.small, options.work)
    SECTIONS[options.section](to)


if __name__ == "__main__":
    main()
