"""Paths side by side: a process each, taking turns in every round, so that a busy moment slows all of them."""

from __future__ import annotations

import json
import queue
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from l2p.bench.paths import Job

NO_ANSWER = object()


def bench(
    jobs: Sequence[Job],
    rounds: int,
    time_limit: float,
    threads: int | None = None,
    warm_up: int = 1,
    tell: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """A row a job. Jobs of one size run interleaved; ``warm_up`` untimed rounds go first.

    Args:
        time_limit: seconds for one picture, and for building the path; beyond, the row says "timed out".
        tell: gets a line a picture, for the impatient.

    Returns:
        rows with ``path``, ``height``, ``width``, ``batch``, ``steps``, ``device``, ``dtype``, ``compile``,
        ``cuda_graphs``, ``parameters``, ``status`` ("ok", or why there are no figures), ``seconds_median``, ``seconds_p20``,
        ``seconds_p80``, ``rounds``, ``peak_memory_bytes`` and ``components`` (label -> median seconds); what is not
        known is None.
    """
    rows = []
    for size in dict.fromkeys((job.height, job.width) for job in jobs):
        workers = [Worker(job, threads, time_limit) for job in jobs if (job.height, job.width) == size]
        try:
            for number in range(-warm_up, rounds):
                for worker in workers:
                    if worker.status == "ok" and worker.draw(number + warm_up, timed=number >= 0):
                        tell(f"{worker.job.path} {size[1]} x {size[0]}: {worker.last:.3f} s")
                    elif number == -warm_up:
                        tell(f"{worker.job.path} {size[1]} x {size[0]}: {worker.status}")
            rows += [worker.row() for worker in workers]
        finally:
            for worker in workers:
                worker.stop()
    return rows


class Worker:
    """A path's process, started and built."""

    def __init__(self, job: Job, threads: int | None, time_limit: float) -> None:
        self.job, self.time_limit, self.status = job, time_limit, "ok"
        self.seconds: list[float] = []
        self.components: list[dict[str, float]] = []
        self.facts: dict[str, Any] = {}
        self.last = 0.0
        command = [sys.executable, "-m", "l2p.bench.worker", json.dumps({**asdict(job), "threads": threads})]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._answer()  # one at a time: building must not disturb building, or measuring

    def draw(self, number: int, timed: bool) -> bool:
        """One picture; False, and a status, when there is none."""
        try:
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone: the answer says how
        answer = self._answer()
        if answer is None:
            return False
        self.last = answer["seconds"]
        if timed:
            self.seconds.append(answer["seconds"])
            self.components.append(answer["components"])
        return True

    def row(self) -> dict[str, Any]:
        job, times = self.job, self.seconds
        whole = self.status == "ok" and bool(times)
        p20, p80 = _percentile(times, 0.2), _percentile(times, 0.8)
        labels = dict.fromkeys(label for parts in self.components for label in parts)
        return {
            **{name: getattr(job, name) for name in ("path", "preset", "height", "width", "batch")},
            "steps": self.facts.get("steps"),
            **{name: getattr(job, name) for name in ("device", "dtype", "compile", "cuda_graphs")},
            "parameters": self.facts.get("parameters"),
            "status": self.status,
            "seconds_median": statistics.median(times) if whole else None,
            "seconds_p20": p20 if whole else None,
            "seconds_p80": p80 if whole else None,
            "rounds": len(times),
            "peak_memory_bytes": self.facts.get("peak_memory_bytes"),
            "components": {
                label: statistics.median(parts.get(label, 0.0) for parts in self.components)
                for label in labels
            },
        }

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any] | None:
        try:
            line = self._lines.get(timeout=self.time_limit)
        except queue.Empty:
            self.stop()
            self.status = f"timed out after {self.time_limit:g} s"
            return None
        if line is NO_ANSWER:
            killed = self.process.wait() in (-signal.SIGKILL, 128 + signal.SIGKILL)
            self.status = "out of memory" if killed else f"died with code {self.process.returncode}"
            return None
        answer = json.loads(line)
        self.facts.update({k: v for k, v in answer.items() if k not in ("seconds", "components", "failure")})
        if "failure" in answer:
            self.status = answer["failure"]
            return None
        return answer

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(NO_ANSWER)


def _percentile(values: Sequence[float], share: float) -> float | None:
    import numpy as np

    return float(np.quantile(values, share)) if values else None
