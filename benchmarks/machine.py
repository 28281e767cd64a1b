"""What the figures were measured on, for whoever reads them later. It names no host."""

import importlib.metadata
import os
import platform
import sysconfig
from datetime import UTC, datetime
from pathlib import Path

_LIBRARIES = (
    *("loomos", "autogen-core", "autogen-ext", "grpcio", "msgspec", "nats-py", "pydantic"),
    *("pyzmq", "redis", "typer"),
)


def describe() -> dict[str, str]:
    """Return what matters of machine, interpreter and libraries."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores of {_processor()}, {_memory()} GiB",
        "system": f"{platform.system()} {_release()}, {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, {_build()}",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES),
        "load": f"{os.getloadavg()[0]:.2f} runnable processes in the minute before the start",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _release() -> str:
    """Return the kernel's two first numbers; the rest names a build."""
    return ".".join(platform.release().split(".")[:2])


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _build() -> str:
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimised = "--enable-optimizations" in arguments
    return "built with optimisation" if optimised else "built without --enable-optimizations"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
