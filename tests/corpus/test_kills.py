"""The corpus of a recipe, 2,000 pictures of the bundled teacher, drawn by a command that is killed five times."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PICTURES, SHARD, KILLS = 2000, 100, 5


def command(folder: Path, *more: str) -> list[str]:
    overrides = [f"output_dir={folder}", f"corpus.num_pairs={PICTURES}", f"corpus.shard_size={SHARD}"]
    recipe = str(ROOT / "recipes" / "corpus-landscapes.yaml")
    return [sys.executable, "-m", "l2p.cli.main", "synthesize", recipe, *overrides, *more]


def killed_at(folder: Path, shards: int, delay: float) -> int:
    """Run the command, and kill it so many seconds after it has so many shards; the number of shards it leaves."""
    corpus = folder / "corpus"
    process = subprocess.Popen(
        command(folder), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(corpus.glob("shard-*.tar"))) < shards:
        time.sleep(0.05)
    time.sleep(delay)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list(corpus.glob("shard-*.tar")))


@pytest.mark.slow
def test_killed_five_times_the_corpus_is_whole(tmp_path):
    import webdataset

    draw, told = random.Random(os.environ.get("L2P_KILL_SEED", "7")), []
    for shards in sorted(draw.sample(range(PICTURES // SHARD - 1), KILLS)):
        delay = draw.uniform(0, 10)
        told.append((shards, round(delay, 2), killed_at(tmp_path, shards, delay)))
    print("killed at (shards wanted, seconds after, shards left):", told)
    subprocess.run(command(tmp_path), cwd=ROOT, check=True)
    subprocess.run(command(tmp_path, "--check"), cwd=ROOT, check=True)

    corpus = tmp_path / "corpus"
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert sum(shard["count"] for shard in manifest["shards"]) == PICTURES
    assert [p.name for p in sorted(corpus.glob("*.tar"))] == [shard["name"] for shard in manifest["shards"]]
    for shard in manifest["shards"]:
        path = corpus / shard["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        listed = subprocess.run(
            ["tar", "-tf", path], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(listed) == len(set(listed)) == 3 * shard["count"]

    urls = [str(path) for path in sorted(corpus.glob("*.tar"))]
    facts, pictures = [], set()
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        facts.append(json.loads(sample["json"]))
        image = np.array(Image.open(io.BytesIO(sample["png"])))
        assert image.shape == (128, 128, 3)
        pictures.add(hashlib.sha256(image.tobytes()).hexdigest())
    assert [fact["index"] for fact in facts] == [fact["seed"] for fact in facts] == list(range(PICTURES))
    assert len(pictures) == PICTURES  # no picture twice
    listed = [json.loads(line)["prompt"] for line in (corpus / "prompts.jsonl").read_text().splitlines()]
    assert [fact["prompt"] for fact in facts] == [listed[i % len(listed)] for i in range(PICTURES)]
    left = {path.name for path in corpus.iterdir() if path.name.startswith(".")}
    assert not left, left  # neither locks nor halves
