"""Floor 2: the only room that knows batch, chunk, device, dtype and no_grad."""

from interp.engine.metrics import METRICS, Metric, metric_named
from interp.engine.plans import Cell
from interp.engine.sweeps import Estimate, Sweep, estimate, sweep

__all__ = ["METRICS", "Cell", "Estimate", "Metric", "Sweep", "estimate", "metric_named", "sweep"]
