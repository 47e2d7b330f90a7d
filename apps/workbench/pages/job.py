"""A job under its own link: progress while it runs, its result when it is done."""

from __future__ import annotations

from typing import Any

import dash

from apps.workbench import cell  # noqa: F401
from apps.workbench.live import live
from apps.workbench.tell import page, shown

dash.register_page(__name__, path_template="/job/<job_id>", title="Job · interp")


@shown
def layout(job_id: str = "", **_query: Any) -> Any:
    """Follow the job."""
    return page("Job", "It goes on when this page is closed.", live(job_id))
