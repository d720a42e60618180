"""The prompts of a corpus, gathered, filtered and written down before anything is drawn.

    prompts.jsonl           what is kept, in order; sample i takes the (i mod length)-th
    prompts-dropped.jsonl   what was dropped, why, and by what
    prompts.json            the report: settings, counts, examples; written last, so that where it is all is whole
    prompts-held-out.jsonl  what is kept from the corpus, for the evaluation: a share of a file's prompts, chosen by their text
    prompts-llm.jsonl       the language model's answers as they came

A corpus whose recipe asks for no filter, no language model, no number of prompts and no held-out ones needs no list: its
samples take their prompts straight from the source. So do those of a generator, which makes other prompts for other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from l2p.artifacts import differences, flatten, hash_file, plain, read_sealed, write_sealed
from l2p.corpus.filters import Filters, Report
from l2p.corpus.llm import INSTRUCTION, Writer
from l2p.corpus.prompts import fingerprint, is_endless, prompts_for, short_name
from l2p.corpus.sources import read_texts
from l2p.errors import UserError
from l2p.files import check_writable
from l2p.recipe import CorpusConfig
from l2p.seeds import derive_seed
from l2p.texts import write_prompts

LIST, REPORT, DROPPED, ANSWERS = "prompts.jsonl", "prompts.json", "prompts-dropped.jsonl", "prompts-llm.jsonl"
HELD_OUT = "prompts-held-out.jsonl"
FEW = 20  # prompts of a source from which none are held out: it would have none to spare
CHUNK = 256  # prompts taken from a source at a time
PATIENCE = 50  # prompts tried for each that is wanted, before a source is given up


def needs_list(config: CorpusConfig) -> bool:
    return bool(config.filters or config.llm or config.num_prompts or _holds_out(config))


def _holds_out(config: CorpusConfig) -> bool:
    if not config.held_out or is_endless(config.prompts):
        return False
    return len(set(read_texts(config.prompts))) >= FEW


def is_held_out(prompt: str, share: float, seed: int) -> bool:
    """Whether a prompt is one of the share that is kept from a corpus: a function of its text and the corpus' seed alone."""
    return derive_seed("held-out", seed, prompt) < share * 2**63


def held_out_prompts(folder: Path) -> str | None:
    """The source of the prompts that were kept from the corpus in a folder; None if there are none."""
    path = folder / HELD_OUT
    return str(path) if path.is_file() else None


def read_report(config: CorpusConfig, folder: Path, seed: int) -> dict[str, Any] | None:
    """The report of the list in `folder`, or None where there is none yet.

    Raises:
        UserError: the list was made with other settings, or was changed since.
    """
    if not (folder / REPORT).is_file():
        return None
    report = read_sealed(folder / REPORT, "delete this file to make the list anew")
    settings = _settings(config, seed)
    if changed := differences(flatten(report["settings"]), flatten(settings)):
        raise UserError(
            f"the prompts in {folder} were made with other settings ({changed}): delete the folder or choose "
            "another corpus.path"
        )
    if fingerprint(folder / LIST) != report["sha256"]:
        raise UserError(f"{folder / LIST} is not what {REPORT} says: delete {REPORT} to make the list anew")
    return report


def make_list(config: CorpusConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Gather and filter the prompts of a corpus into `folder`, unless they are there; returns the report.

    Raises:
        UserError: as :func:`read_report`; a source, a filter or the language model fails, or too little is left.
    """
    if (found := read_report(config, folder, seed)) is not None:
        return found
    check_writable(folder)
    filters = Filters(config.filters) if config.filters else None
    endless = is_endless(config.prompts)
    wanted = config.num_prompts or (config.num_pairs if endless else None)
    report = Report()
    for chunk in _candidates(config, folder, seed, endless, wanted):
        report.sort(chunk, filters, wanted)
        if wanted is not None and len(report.kept) >= wanted:
            break
    if not report.kept or (wanted is not None and len(report.kept) < wanted):
        raise UserError(_too_few(report, wanted))
    share = config.held_out if _holds_out(config) and len(report.kept) >= FEW else 0.0
    held_out = [prompt for prompt in report.kept if is_held_out(prompt, share, seed)]
    away = set(held_out)
    write_prompts(folder / DROPPED, report.dropped)
    write_prompts(folder / LIST, [{"prompt": prompt} for prompt in report.kept if prompt not in away])
    if held_out:
        write_prompts(folder / HELD_OUT, [{"prompt": prompt} for prompt in held_out])
    else:
        (folder / HELD_OUT).unlink(missing_ok=True)
    summary = {
        "settings": _settings(config, seed),
        "sha256": fingerprint(folder / LIST),
        "held_out": len(held_out),
        **report.summary(),
    }
    write_sealed(folder / REPORT, summary)
    return summary


def _candidates(
    config: CorpusConfig, folder: Path, seed: int, endless: bool, wanted: int | None
) -> Iterator[list[str]]:
    """Prompts of the source, as the language model rewrites them where there is one."""
    writer = Writer(config.llm, folder / ANSWERS) if config.llm else None
    total = PATIENCE * (wanted or 0) if endless else len(read_texts(config.prompts))
    # No more than a few requests ahead of what is wanted: they cost money.
    step = CHUNK if config.llm is None else config.llm.prompts_per_request * config.llm.parallel
    for first in range(0, total, step):
        chunk = prompts_for(config.prompts, range(first, min(first + step, total)), seed)
        yield writer.rewrite(chunk) if writer else chunk


def _too_few(report: Report, wanted: int | None) -> str:
    drops = ", ".join(f"{reason} {found['count']}" for reason, found in report.summary()["dropped"].items())
    return (
        f"only {len(report.kept)} prompts of {len(report.kept) + len(report.dropped)} are left"
        f"{f', {wanted} were asked for' if wanted else ''} (dropped: {drops or 'none'}): "
        "lower corpus.num_prompts, loosen corpus.filters, or take a richer source"
    )


def _settings(config: CorpusConfig, seed: int) -> dict[str, Any]:
    """What shapes the list. A generator's list is as long as the corpus was when it was made; growing starts it over."""
    settings: dict[str, Any] = {
        "prompts": short_name(config.prompts),
        "source_sha256": fingerprint(config.prompts, seed),
        "num_prompts": config.num_prompts,
        "filters": _filters_settings(config),
    }
    if _holds_out(config):
        settings["held_out"] = config.held_out
    if config.llm is not None:
        kept = ("base_url", "model", "temperature")
        settings["llm"] = {name: getattr(config.llm, name) for name in kept}
        settings["llm"]["instruction"] = config.llm.instruction or INSTRUCTION
    return plain(settings)


def _filters_settings(config: CorpusConfig) -> dict[str, Any] | None:
    if config.filters is None:
        return None
    settings = asdict(config.filters)
    if config.filters.blocked_file is not None and Path(config.filters.blocked_file).is_file():
        settings["blocked_file"] = hash_file(config.filters.blocked_file)
    return settings
