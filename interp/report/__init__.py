"""Floor 7: a question over models × tasks × methods, answered in one HTML file."""

from interp.report.batch import report
from interp.report.page import page_of, result_report
from interp.report.specs import Cell, ReportSpec, read_spec

__all__ = ["Cell", "ReportSpec", "page_of", "read_spec", "report", "result_report"]
