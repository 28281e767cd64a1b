"""What Loom is measured with: each case side by side with its peers, in one run.

``python -m benchmarks`` runs all of them and writes ``docs/benchmarks.md``. No test asserts a time.
"""
