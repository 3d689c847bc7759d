"""Retention: what Dask would keep of all that was ever computed, as long as its scheduler lives; and how little here.

A notebook is open all day. The functions and reports of a training are 0.2 MB, which stay in logs for Dask's own
developers, and as many spans, which are what its dashboard sums up a piece of work in.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import distributed.core
from distributed.spans import Span, SpansSchedulerExtension

LOGS = "distributed.admin.low-level-log-length"
BRIEF: dict[str, Any] = {  # configuration
    LOGS: 20,  # instead of 1,000 messages, events and changes of state
    "distributed.diagnostics.computations.max-history": 5,  # the groups of their tasks stay as well
}
_SPANS = 20


class RecentSpans(SpansSchedulerExtension):
    """Spans of which those are forgotten that nobody has named, and whose tasks are forgotten too, but for the last."""

    def observe_tasks(self, *args: Any, **rest: Any) -> Any:
        told = super().observe_tasks(*args, **rest)
        groups = self.scheduler.task_groups
        for span in self.root_spans[:-_SPANS]:
            if span.name == ("default",) and not any(groups.get(it.name) is it for it in span.groups):
                self._forget(span)
        return told

    def _forget(self, span: Span) -> None:
        del self.spans[span.id]
        for known in (self.root_spans, self.spans_search_by_name[span.name], self.spans_search_by_tag["default"]):
            known.remove(span)

    def heartbeat(self, ws: Any, data: Any) -> None:
        super().heartbeat(ws, {key: seconds for key, seconds in data.items() if key[1] in self.spans})


def keep_no_schedulers() -> None:
    """Let Dask forget closed schedulers, half a megabyte each, which two of its caches would keep."""
    with suppress(AttributeError):  # another version of Dask
        distributed.core._expects_comm.cache_clear()
    with suppress(ImportError):  # without Bokeh there are no pages
        from distributed.dashboard import scheduler as pages

        pages.template_variables = getattr(pages.template_variables, "__wrapped__", pages.template_variables)
