"""What user code of one app holds outside of the engine. Counted here, shown by ``app.stats()``.

Everything here is read and written on the app's own event loop.
"""

import asyncio
from dataclasses import dataclass


@dataclass(slots=True)
class Gauges:
    """``busy``, ``alive`` and ``abandoned`` are of now; the others only grow."""

    tasks_abandoned: int = 0  # cancelled, and not ended yet
    threads_busy: int = 0
    threads_abandoned: int = 0
    workers_alive: int = 0
    workers_busy: int = 0
    workers_started: int = 0
    workers_died: int = 0  # by themselves
    workers_killed: int = 0  # because their call was given up, or never said that they were ready
    loop_stalls: int = 0

    @property
    def busy_outside(self) -> int:
        """How much user code runs where the loop does not see it: in threads and processes."""
        return self.threads_busy + self.workers_busy

    def abandon_task(self, task: "asyncio.Task[None]") -> None:
        """Count a task that goes on though cancelled, until it ends after all."""
        self.tasks_abandoned += 1
        task.add_done_callback(self._end_abandoned_task)

    def _end_abandoned_task(self, _: "asyncio.Task[None]") -> None:
        self.tasks_abandoned -= 1

    def shown(self) -> dict[str, dict[str, int]]:
        """Return the figures as docs/stats.md describes them."""
        return {
            "tasks": {"abandoned": self.tasks_abandoned},
            "threads": {"busy": self.threads_busy, "abandoned": self.threads_abandoned},
            "workers": {
                "alive": self.workers_alive,
                "busy": self.workers_busy,
                "started": self.workers_started,
                "died": self.workers_died,
                "killed": self.workers_killed,
            },
            "loop": {"stalls": self.loop_stalls},
        }
