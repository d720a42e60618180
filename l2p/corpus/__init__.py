"""What the teacher drew, kept on disk: pairs of pixel noise (by its seed) and picture, with prompt and latent.

Prompts are in :mod:`~l2p.corpus.prompts`, and gathered and filtered in :mod:`~l2p.corpus.prompt_list`; the files are in
:mod:`~l2p.corpus.manifest` and :mod:`~l2p.corpus.shards`, the reader in :mod:`~l2p.corpus.dataset`, and the drawing itself in
:mod:`~l2p.corpus.synthesis`. Photographs from elsewhere, for growing, are in :mod:`~l2p.corpus.photos`.
"""

from l2p.corpus.dataset import CorpusDataset
from l2p.corpus.manifest import read_manifest
from l2p.corpus.prompts import prompts_for
from l2p.corpus.shards import ShardWriter
from l2p.corpus.synthesis import check_solver, synthesize

__all__ = ["CorpusDataset", "ShardWriter", "check_solver", "prompts_for", "read_manifest", "synthesize"]
