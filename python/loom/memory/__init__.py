"""Memories: key-value stores behind ``ctx.memory``."""

from loom.memory.in_process import InProcessMemory

__all__ = ["InProcessMemory"]
