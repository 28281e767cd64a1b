"""A module that refuses to be imported in a worker process while told so, for test_isolation.py."""

import os

import loom

if os.environ.get("LOOM_TEST_PARENT") not in (None, str(os.getpid())):
    raise RuntimeError("not here")

app = loom.App("never")


@app.capability("never", effect="unsafe", isolation="process", timeout=30)
def never() -> None: ...
