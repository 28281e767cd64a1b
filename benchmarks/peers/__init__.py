"""What Loom is compared with: the same work, done without it."""
