"""Backends of a Dask Gateway: dask-gateway's own, which start clusters on this machine, with what they lack.

What dask-gateway 2026.3 does not do, and these do: give a cluster's files to the student whose cluster it is (it goes
through the letters of their path instead, so that `/` and the folder it was started in change their owner, and the keys
do not), say what a scheduler wrote that did not start, and tell a student's clusters apart by the notebook they are of.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from pathlib import Path
from typing import Any

from aiohttp import web
from dask_gateway_server.backends.db_base import JobStatus
from dask_gateway_server.backends.local import LocalBackend, UnsafeLocalBackend
from dask_gateway_server.options import Options, String
from dask_gateway_server.routes import api_handler
from traitlets import default

from labkit.classroom.hub_service import until_the_hub_has_gone

_LINES, _KEPT = 40, 200  # of a program's log, and logs of clusters that are gone


class _WithLogs(LocalBackend):  # type: ignore[misc]  # dask_gateway_server has no types
    """Keeps the last lines that the programs of a cluster have written, for its owner, and the name of its kernel."""

    @default("cluster_options")
    def _kernel(self) -> Options:
        return Options(String("kernel", default=""), handler=lambda _: {})

    async def setup(self, app: web.Application) -> None:
        """Called by the Gateway as it starts."""
        self._written: dict[str, str] = {}  # by clusters that are gone; the newest last
        log = api_handler(self._log, user_authenticated=True)
        app.add_routes([web.get("/api/v1/clusters/{cluster_name}/log", log)])
        await super().setup(app)
        self.task_pool.spawn(self._end_with_the_hub())
        self.task_pool.spawn(self._end_the_headless())

    async def _end_with_the_hub(self) -> None:
        await until_the_hub_has_gone()
        os.kill(os.getpid(), signal.SIGTERM)

    async def _end_the_headless(self) -> None:
        """End clusters whose scheduler has gone, which dask-gateway would show for half a minute as running."""
        while True:
            await asyncio.sleep(self.cluster_status_period)
            for cluster in list(self.db.active_clusters()):
                if cluster.status == JobStatus.RUNNING and not self._check_status(cluster):
                    await self.stop_cluster(cluster.name, failed=True)

    async def _log(self, request: web.Request) -> web.Response:
        cluster = self.db.get_cluster(request.match_info["cluster_name"])
        if cluster is None or cluster.username != request["user"].name:
            raise web.HTTPNotFound(reason="you have no such cluster")
        folder = cluster.state.get("workdir")
        return web.json_response({"log": self._last_lines(folder) or self._written.get(cluster.name, "")})

    def _last_lines(self, folder: str | None) -> str:
        """The ends of the logs in a cluster's folder, its scheduler's first."""
        logs = sorted(Path(self.get_logs_directory(folder)).glob("*.log")) if folder else []
        ends = []
        for log in logs:
            with log.open(errors="replace") as lines:
                ends.append("".join(deque(lines, _LINES)))
        return "".join(ends)

    async def do_stop_cluster(self, cluster: Any) -> None:
        """Called by the Gateway to end a cluster's scheduler; the last lines are kept, the folder goes."""
        self._written[cluster.name] = self._last_lines(cluster.state.get("workdir"))
        for name in list(self._written)[:-_KEPT]:
            del self._written[name]
        await super().do_stop_cluster(cluster)


class OwnAccounts(_WithLogs):
    """Each student's schedulers and workers run under that student's account of this machine; needs root."""

    def set_file_permissions(self, paths: list[str], username: str) -> None:
        """Give a cluster's folder, the first of `paths`, and all in it to its student, and nothing else."""
        folder = Path(paths[0])
        super().set_file_permissions([folder, *folder.rglob("*")], username)


class OneAccount(_WithLogs, UnsafeLocalBackend):  # type: ignore[misc]
    """All schedulers and workers run under the Gateway's own account: to try it, for students can read each other."""
