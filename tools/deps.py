"""Bring what the tests and the benchmarks need from the system: ``deps.py test|bench``.

Nothing here is needed to use Loom, and nothing here fails because something cannot be had: what is
missing is named, the tests that need it are skipped with that reason, and a benchmark says that its
peer is not installed. ``test`` installs Debian packages, which takes root. ``bench`` puts the
servers that Loom is compared with into ``.venv-bench/servers``, which takes none, and starts no
service.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVERS = ROOT / ".venv-bench" / "servers"
# program: the Debian package that has it
PACKAGES = {
    "chromium": "chromium",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "strace": "strace",
    "ip": "iproute2",
    "nft": "nftables",
}
NATS = "github.com/nats-io/nats-server/v2@v2.15.2"
# Redis and the libraries of it that a small system lacks
REDIS = (
    *("redis-server", "redis-tools", "libjemalloc2", "liblua5.1-0", "liblzf1"),
    *("lua-cjson", "lua-bitop", "libatomic1"),
)


def found(program: str) -> bool:
    """Whether a program is there; the directories of root count, too."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    return shutil.which(program, path=path) is not None


def for_tests() -> None:
    """Install the missing packages, or say how."""
    missing = sorted({package for name, package in PACKAGES.items() if not found(name)})
    if not missing:
        print("all that the tests need from the system is there")
        return
    command = ("apt-get", "install", "-y", "--no-install-recommends", *missing)
    if not found("apt-get"):
        print(f"left out, for this is no Debian: the tests that need {', '.join(missing)}")
    elif os.geteuid() != 0:
        print(f"left out without root: the tests that need {', '.join(missing)}")
        print(f"  to have them: sudo {' '.join(command)}")
    elif not (ran(("apt-get", "update", "-qq")) and ran(command)):
        print(f"left out, the packages cannot be had: the tests that need {', '.join(missing)}")


def for_benchmarks() -> None:
    """Bring the servers that are not there yet."""
    SERVERS.mkdir(parents=True, exist_ok=True)
    if not found("nats-server") and not (SERVERS / "nats-server").exists():
        print(f"building {NATS}")
        if not found("go"):
            print("left out, go is not installed: NATS JetStream")
        elif not ran(("go", "install", NATS), GOBIN=str(SERVERS), GOFLAGS="-buildvcs=false"):
            print("left out, it cannot be built: NATS JetStream")
    if not found("redis-server") and not (SERVERS / "redis").exists():
        print("unpacking Redis from Debian's packages")
        if not unpacked(REDIS, SERVERS / "redis"):
            print("left out, its packages cannot be had: Redis")


def unpacked(packages: Sequence[str], to: Path) -> bool:
    """Unpack Debian packages into a directory: nothing is installed, no script of them runs."""
    if not (found("apt-get") and found("dpkg")):
        return False
    with tempfile.TemporaryDirectory(dir=SERVERS) as place:
        # Root may write here, apt's own user may not.
        options = ("-qq", "-o", f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}")
        if not ran(("apt-get", "download", *options, *packages), where=place):
            return False
        whole = Path(place) / "whole"
        if all(ran(("dpkg", "-x", str(one), str(whole))) for one in Path(place).glob("*.deb")):
            whole.rename(to)
            return True
    return False


def ran(command: Sequence[str], where: str | None = None, **more: str) -> bool:
    """Whether a command ended well."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", **more}
    done = subprocess.run(
        command, cwd=where, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Bring what was asked for."""
    wanted = {"test": for_tests, "bench": for_benchmarks}
    if len(arguments) != 1 or arguments[0] not in wanted:
        print(f"usage: deps.py {'|'.join(wanted)}", file=sys.stderr)
        return 2
    wanted[arguments[0]]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
