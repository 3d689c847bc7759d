"""Federations: the training of the class that the board conducts now, if there is one."""

from __future__ import annotations

import asyncio
from typing import Any

from labkit.classroom.assignment import Assignment
from labkit.classroom.federation import Federation, Refused


class Federations:
    """At most one training of the class at a time."""

    def __init__(self) -> None:
        self.current: Federation | None = None
        self._starting = False
        self._conducted: asyncio.Task[None] | None = None

    async def invite(self, told: Any) -> Federation:
        """Start the training that the teacher's JSON describes. Raises Refused while another is under way.

        Raises what is wrong with the assignment.
        """
        if self._starting or (self.current is not None and self.current.phase != "ended"):
            raise Refused(409, "The class is in a training already: stop that one first.")
        self._starting = True
        try:
            self.current = await Federation.start(Assignment.read(told))
        finally:
            self._starting = False
        self._conducted = asyncio.create_task(self.current.conduct())
        return self.current

    def under_way(self) -> Federation:
        """The training there is. Raises Refused where there is none."""
        if self.current is None:
            raise Refused(404, "The teacher has not invited the class to a training yet: wait, and join then.")
        return self.current
