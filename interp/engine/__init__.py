"""Floor 2: the only room that knows batch, chunk, device, dtype and no_grad."""

from interp.engine.dictionaries import feature_cells, feature_values
from interp.engine.edges import all_edges
from interp.engine.metrics import METRICS, Metric, metric_named
from interp.engine.plain import plain_metrics, plain_source, read_values
from interp.engine.plans import Cell
from interp.engine.reading import (
    answers,
    head_writing,
    likeliest,
    run_probabilities,
    run_reads,
    score_answers,
)
from interp.engine.scores import ScoreTerms, score_terms
from interp.engine.screening import Screened, screened_sweep
from interp.engine.sweeps import Estimate, estimate, sweep
from interp.engine.undriven import Sweep, undriven

__all__ = [
    "METRICS",
    "Cell",
    "Estimate",
    "Metric",
    "ScoreTerms",
    "Screened",
    "Sweep",
    "all_edges",
    "answers",
    "estimate",
    "feature_cells",
    "feature_values",
    "head_writing",
    "likeliest",
    "metric_named",
    "plain_metrics",
    "plain_source",
    "read_values",
    "run_probabilities",
    "run_reads",
    "score_answers",
    "score_terms",
    "screened_sweep",
    "sweep",
    "undriven",
]
