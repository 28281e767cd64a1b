"""The Writer of the trio in a process of its own, with the tools that all may call.

    loom run examples.mixed.writer --url local

It is the Writer of `examples/trio`, line for line.
"""

import loom
from examples.trio.app import write
from loom.tools import weather, web

app = loom.App("desk")
app.include(web.app)
app.include(weather.app)
app.agent("writer", topics=["draft.wanted"])(write)
