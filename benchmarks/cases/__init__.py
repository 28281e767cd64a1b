"""One file a case; ``benchmarks.registry`` names them."""
