"""`l2p import`: which variant a file is, and the folder that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

from l2p import __version__
from l2p.checksums import write_checksums
from l2p.errors import UserError
from l2p.files import PathLike, atomic_path, read_json, write_json, write_text
from l2p.published.checkpoint import CARD, Checkpoint, Source, fetch
from l2p.published.l2p_weights import L2P_VARIANTS, L2PVariant, import_l2p, provenance
from l2p.published.pid import (
    CONFIG,
    LICENSE,
    NOTICE,
    PAPER,
    PID_VARIANTS,
    PREFIX,
    REPO,
    PiDVariant,
    pid_config,
    pid_names,
)
from l2p.published.pid_text import ENCODER
from l2p.students import weights
from l2p.teachers import license_of

CARD_TEXT = """\
---
license: other
license_name: nvidia-license-nsclv1
tags: [pixel-diffusion, decoder, non-commercial]
---

# {name}

**Not for commercial use**: {notice}. A redistributor of these weights reads the licence as binding decoded pictures too.

A published PiD decoder ({paper}) as latent2pixel reads it: `{file}` of `{repo}`, revision {revision}, values and number
formats as they were published.

```
l2p decode LATENTS --weights {folder} --text-encoder {encoder} --prompt CAPTION --out PICTURE
```
"""


def variants() -> dict[str, L2PVariant | PiDVariant]:
    """All that can be imported, by name."""
    return {**L2P_VARIANTS, **PID_VARIANTS}


def import_weights(
    source: str,
    out: PathLike,
    variant: str | None = None,
    text_encoder: str | None = None,
    endpoint: str | None = None,
) -> tuple[str, str]:
    """Turn a published file into a folder: a student (L2P) or a decoder (PiD).

    Args:
        source: a file, or ``USER/NAME[@REVISION]:FILE`` of the Hub, where FILE may be a variant's name.
        variant: see :func:`variants`; found by the file's own name if None.
        text_encoder: for students, see :func:`l2p.published.l2p_weights.import_l2p`.
        endpoint: another Hub.

    Returns:
        the variant's name, and the licence that was recorded.

    Raises:
        UserError: whatever is wrong with file, variant or folder, before anything is written.
    """
    out, known = Path(out), variants()
    if variant is not None and variant not in known:
        raise UserError(f"no variant {variant!r}, expected one of {', '.join(known)}")
    _check_out(out)
    repo_of = {name: REPO if isinstance(v, PiDVariant) else v.repo for name, v in known.items()}
    files = {
        repo: {name: known[name].file for name in known if repo_of[name] == repo} for repo in repo_of.values()
    }
    found = fetch(source, files, endpoint)
    name = variant or identify(found.path)
    chosen = known[name]
    if isinstance(chosen, PiDVariant):
        if text_encoder is not None:
            raise UserError("a PiD decoder keeps no text encoder: leave out --text-encoder")
        import_pid(name, chosen, found, out)
        return name, LICENSE
    license = _license(found)
    import_l2p(name, chosen, found, out, license, text_encoder)
    return name, license or chosen.license


def identify(path: Path) -> str:
    """The variant that a file's name, or its folder's, is published under.

    Raises:
        UserError: it tells none, or a kind that cannot be imported.
    """
    place = path.absolute()  # not where a link leads: in the Hub's cache that is a hash
    if "undistilled" in place.as_posix():
        raise UserError(
            f"{path} is an undistilled PiD, which takes 25 guided steps: import the one of 4 steps "
            f"(l2p import --list)"
        )
    for name, variant in variants().items():
        if isinstance(variant, PiDVariant):
            matches = variant.folder in place.parts or path.stem == variant.folder
        else:
            matches = path.name == Path(variant.file).name
        if matches:
            return name
    raise UserError(
        f"neither {path.name} nor its folder is a published name: say which it is with --variant, one of "
        f"{', '.join(variants())}"
    )


def import_pid(name: str, variant: PiDVariant, source: Source, out: Path) -> None:
    """Write a decoder's folder from a published file, tensor by tensor in the dtype it has there.

    Raises:
        UserError: a file that is not this variant's, or values that are not finite.
    """
    checkpoint = Checkpoint(source.path, PREFIX)
    wanted = pid_names(variant)
    weights.check_entries(wanted, checkpoint.entries, source.path, f"the variant {name}")
    origin = provenance(source, REPO, LICENSE, PAPER)
    config = pid_config(name, variant, origin, __version__)
    kinds = {key: weights.FLOATS[entry.dtype] for key, entry in checkpoint.entries.items()}
    state = {key: tensor.to(kinds[key]) for key, tensor in wanted.items()}
    with atomic_path(out) as partial:
        partial.mkdir()
        metadata = {"format": "pt", "config": json.dumps(config), "license": LICENSE}
        weights.write_weights(state, partial, metadata, read=checkpoint.read)
        write_json(partial / CONFIG, config)
        card = CARD_TEXT.format(
            name=name,
            notice=NOTICE,
            paper=PAPER,
            repo=REPO,
            file=origin["file"],
            revision=origin["revision"] or "unknown",
            folder=out.name,
            encoder=ENCODER,
        )
        write_text(partial / CARD, card)
        write_checksums(partial)


def _check_out(out: Path) -> None:
    if out.is_file():
        raise UserError(f"cannot write a folder {out}: there is a file of that name")
    if out.is_dir() and any(out.iterdir()) and not _is_imported(out):
        raise UserError(
            f"{out} holds files that `l2p import` did not write, so it is left alone: move it away, or choose another folder"
        )


def _is_imported(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG)
    except UserError:
        return False
    return isinstance(config, dict) and "source" in config


def _license(source: Source) -> str | None:
    """What the card beside a fetched file says; None where there is none or it says nothing."""
    if source.name is None:
        return None
    folder = next((parent for parent in source.path.parents if (parent / CARD).is_file()), None)
    license = license_of(folder) if folder else "unknown"
    return None if license == "unknown" else license
