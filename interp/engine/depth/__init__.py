"""Depth: passes that watch every layer of a model, skip layers, erase residuals, run programs."""

from interp.engine.depth.corpus import Batch, Corpus, corpus_of
from interp.engine.depth.erasing import Erasure, erase
from interp.engine.depth.programs import run_programs
from interp.engine.depth.walking import Step, distance, layer_step, scored_losses, walk, wide
from interp.engine.depth.wavefront import Fill, Skip, Skipped, local_skips, skip_wavefront

__all__ = [
    "Batch",
    "Corpus",
    "Erasure",
    "Fill",
    "Skip",
    "Skipped",
    "Step",
    "corpus_of",
    "distance",
    "erase",
    "layer_step",
    "local_skips",
    "run_programs",
    "scored_losses",
    "skip_wavefront",
    "walk",
    "wide",
]
