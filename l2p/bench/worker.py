"""One path in a process of its own, so that its peak of memory is its own: `python -m l2p.bench.worker JOB`.

Talks in lines of JSON: after building it says what it is, then draws once for every line it reads and says how long that
took. Whatever fails is a last line with `failure`.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from pathlib import Path as File
from typing import Any, TextIO


def main() -> None:
    told, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not meet the answers
    score = File("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")  # when memory runs out, this process goes and no other
    try:
        serve(json.loads(sys.argv[1]), told)
    except Exception as error:
        from l2p.cli.main import explain

        text = explain(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        short = text.startswith("out of memory") or isinstance(error, MemoryError)
        say(told, failure="out of memory" if short else text, **peak(None))


def serve(settings: dict[str, Any], told: TextIO) -> None:
    import torch

    from l2p import runtime
    from l2p.bench.clock import Clock
    from l2p.bench.paths import PATHS, Job

    threads = settings.pop("threads")
    runtime.setup(threads)
    runtime.keep_freed_memory()
    runtime.silence_libraries()
    job = Job(**settings)
    clock = Clock(torch.device(job.device))
    path = PATHS[job.path](job, clock)
    say(told, parameters=path.parameters, steps=path.steps, **peak(clock.device))
    for line in sys.stdin:
        clock.seconds.clear()
        start = time.perf_counter()
        pictures = path.draw(int(line))
        if clock.device.type == "cuda":
            torch.cuda.synchronize(clock.device)
        seconds = time.perf_counter() - start
        assert pictures.shape == (job.batch, job.height, job.width, 3), pictures.shape
        del pictures
        gc.collect()
        say(told, seconds=seconds, components=dict(clock.seconds), **peak(clock.device))


def peak(device: Any) -> dict[str, int]:
    """Most bytes so far: of the GPU's allocator, or resident in this process, libraries included."""
    if device is not None and device.type == "cuda":
        import torch

        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device)}
    if sys.platform == "linux":
        from l2p.evaluation.memory import process_status

        return {"peak_memory_bytes": process_status("VmHWM")}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def say(told: TextIO, **facts: Any) -> None:
    print(json.dumps(facts), file=told, flush=True)


if __name__ == "__main__":
    main()
