"""The Planner of the trio in a process of its own, which also asks the question.

    loom run examples.mixed.planner --url local
    loom run examples.mixed.planner --url local -- "What is a lambda?"

It is the Planner of `examples/trio`, line for line; the others are at the same node.
"""

import loom
from examples.trio.app import Planner, main

__all__ = ["app", "main"]

app = loom.App("trio")
app.agent("planner", topics=["question.asked"])(Planner)
