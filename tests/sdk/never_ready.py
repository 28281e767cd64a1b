"""A module that, while told so, cannot be imported in a worker process, or forks there."""

import os
import time

import loom

if os.environ.get("LOOM_TEST_PARENT") not in (None, str(os.getpid())):
    match os.environ.get("LOOM_TEST_IMPORT"):
        case "forks":
            if os.fork() == 0:
                time.sleep(0.02)
        case _:
            raise RuntimeError("not here")

app = loom.App("never")


@app.capability("never", effect="unsafe", isolation="process", timeout=30)
def never() -> None: ...
