"""A model of the disk: what was done to it, by what strace has noted, and what of it is certain."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, cast

_PAGE: Final = 4_096
_SECTOR: Final = 512
SYNCS: Final = frozenset({"fsync", "fdatasync"})
_CONTENT: Final = frozenset({"write", "pwrite64", "ftruncate"})
_NAMES: Final = frozenset(
    {"mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2"}
)
# What is at each path below the root: the content of a file, nothing of a directory.
Tree: TypeAlias = dict[str, bytes | None]
# How much comes to the disk of what is not certain: of names, and of content.
How: TypeAlias = Literal["none", "all", "one", "but one", "some"]
HOWS: Final[tuple[How, ...]] = ("none", "all", "one", "but one", "some")
# A sync that the replay leaves out, as if the victim had not made it: its call, and the path.
LeftOut: TypeAlias = Callable[[str, str], bool]


class Call(NamedTuple):
    """A call of the victim; its result is below zero if it failed, none if it never came back."""

    name: str
    args: Sequence[str]
    result: int | None


class Step(NamedTuple):
    """A call begins, or it comes back."""

    call: Call
    begins: bool

    @property
    def matters(self) -> bool:
        """Whether a power cut behind it may leave another disk than one before it."""
        if self.call.name in SYNCS:
            return not self.begins
        if self.call.name in _CONTENT:
            return self.begins
        return self.names

    @property
    def names(self) -> bool:
        """Whether a name is given or taken, and is not certain from here on."""
        makes = self.call.name == "openat" and "O_CREAT" in self.call.args[2]
        return self.begins and (makes or self.call.name in _NAMES)


def parse(lines: Iterable[str]) -> list[Step]:
    """Read what strace has written: calls of several threads may be under way at once."""
    steps: list[Step | str] = []
    open_calls: dict[str, tuple[int, str]] = {}  # by thread: where it began, and its beginning
    for line in lines:
        thread, _, rest = line.rstrip("\n").partition(" ")
        rest = rest.strip()
        if rest.startswith(("+++", "---")):
            continue
        if rest.endswith("<unfinished ...>"):
            open_calls[thread] = (len(steps), rest.removesuffix("<unfinished ...>").rstrip())
            steps.append("")
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>", rest)
        if resumed is None:
            call = _call(rest)
            steps += [Step(call, begins=True), Step(call, begins=False)]
            continue
        place, beginning = open_calls.pop(thread)
        call = _call(beginning + rest[resumed.end() :])
        steps[place] = Step(call, begins=True)
        steps.append(Step(call, begins=False))
    for place, beginning in open_calls.values():
        steps[place] = Step(_call(beginning + ") = ?"), begins=True)
    return [step for step in steps if isinstance(step, Step)]


def _call(text: str) -> Call:
    read = re.fullmatch(r"(\w+)\((.*)\)\s+= (-?\w+|\?)(?: .*)?", text, re.DOTALL)
    assert read is not None, text[:200]
    name, args, result = read.groups()
    return Call(name, args.split(", "), None if result == "?" else int(result, 0))


def told_bytes(arg: str) -> bytes:
    """Read bytes as strace -xx writes them."""
    assert arg.endswith('"'), arg[-50:]  # else it was cut short
    return bytes.fromhex(arg[1:-1].replace("\\x", ""))


@dataclass(slots=True, eq=False)
class Change:
    """Something that was done to a file or to a directory, and need not be on the disk."""

    done: bool = field(default=False, init=False)  # its call came back
    certain: bool = field(default=False, init=False)  # it was synced
    given_up: bool = field(default=False, init=False)  # a sync of it has failed


@dataclass(slots=True, eq=False)
class Write(Change):
    """Bytes at a place of a file."""

    at: int
    content: bytes


@dataclass(slots=True, eq=False)
class Resize(Change):
    """Another size of a file."""

    size: int


@dataclass(slots=True, eq=False)
class Naming(Change):
    """A name is given, taken or changed: ``old`` goes, ``new`` comes."""

    node: "File | Folder"
    old: str | None
    new: str | None


class Cut:
    """Decides what comes to the disk of what is not certain."""

    def __init__(self, dice: random.Random, names: How, contents: How) -> None:
        self._dice = dice
        self._names: How = names
        self._contents: How = contents

    def names(self, changes: Sequence[Naming]) -> list[Naming]:
        """Choose among the changes of a directory."""
        open_ones = [place for place, change in enumerate(changes) if not change.certain]
        taken = self._some(self._names, open_ones)
        return [one for place, one in enumerate(changes) if one.certain or place in taken]

    def content(self, base: bytes, changes: Sequence[Change]) -> bytes:
        """Put a file together."""
        whole = bytearray(base)
        pieces = [piece for change in changes for piece in _pieces(change)]
        open_ones = [place for place, (change, _) in enumerate(pieces) if not change.certain]
        taken = self._some(self._contents, open_ones)
        torn = self._contents == "some" and self._dice.random() < 0.5
        for place, (change, piece) in enumerate(pieces):
            if change.certain or place in taken:
                _apply(whole, piece)
            elif torn and isinstance(piece, Write) and self._dice.random() < 0.3:
                _apply(whole, self._tear(piece))
        if self._contents == "some" and self._dice.random() < 0.3:
            # The size may be there before the bytes are.
            whole.extend(bytes(max(0, _size(base, changes) - len(whole))))
        return bytes(whole)

    def _some(self, how: How, open_ones: Sequence[int]) -> set[int]:
        if how == "none" or not open_ones:
            return set()
        if how == "all":
            return set(open_ones)
        if how == "one":
            return {self._dice.choice(open_ones)}
        if how == "but one":
            return set(open_ones) - {self._dice.choice(open_ones)}
        if self._dice.random() < 0.5:  # in their order, up to some place
            return set(open_ones[: self._dice.randint(0, len(open_ones))])
        share = self._dice.choice((0.1, 0.5, 0.9))
        return {place for place in open_ones if self._dice.random() < share}

    def _tear(self, piece: Write) -> Write:
        first = -piece.at % _SECTOR or _SECTOR
        ends = range(first, len(piece.content), _SECTOR)
        return Write(piece.at, piece.content[: self._dice.choice(ends)] if ends else b"")


def _pieces(change: Change) -> Iterator[tuple[Change, Change]]:
    """Cut a write at the pages of the file."""
    if not isinstance(change, Write):
        yield change, change
        return
    at, end = change.at, change.at + len(change.content)
    while at < end:
        to = min(end, at - at % _PAGE + _PAGE)
        yield change, Write(at, change.content[at - change.at : to - change.at])
        at = to


def _apply(whole: bytearray, change: Change) -> None:
    if isinstance(change, Write):
        whole.extend(bytes(max(0, change.at - len(whole))))
        whole[change.at : change.at + len(change.content)] = change.content
    elif isinstance(change, Resize):
        del whole[change.size :]
        whole.extend(bytes(change.size - len(whole)))


def _size(base: bytes, changes: Sequence[Change]) -> int:
    size = len(base)
    for change in changes:
        if isinstance(change, Write):
            size = max(size, change.at + len(change.content))
        elif isinstance(change, Resize):
            size = change.size
    return size


@dataclass(slots=True, eq=False)
class File:
    """A file: what is certainly in it, and what was done to it since."""

    base: bytes = b""
    changes: list[Change] = field(default_factory=list[Change])

    def settle(self) -> None:
        """Take into the base what stands first and is certain."""
        whole = bytearray(self.base)
        settled = 0
        while settled < len(self.changes) and self.changes[settled].certain:
            _apply(whole, self.changes[settled])
            settled += 1
        if settled:
            del self.changes[:settled]
            self.base = bytes(whole)


@dataclass(slots=True, eq=False)
class Folder:
    """A directory: the names certainly in it, what was done to them since, and how it looks now."""

    base: dict[str, "File | Folder"] = field(default_factory=dict[str, "File | Folder"])
    changes: list[Naming] = field(default_factory=list[Naming])
    now: dict[str, "File | Folder"] = field(default_factory=dict[str, "File | Folder"])

    def settle(self) -> None:
        """Take into the base what stands first and is certain."""
        settled = 0
        while settled < len(self.changes) and self.changes[settled].certain:
            _rename(self.base, self.changes[settled])
            settled += 1
        del self.changes[:settled]


def _rename(names: dict[str, File | Folder], naming: Naming) -> None:
    if naming.old is not None and names.get(naming.old) is naming.node:
        del names[naming.old]
    if naming.new is not None:
        names[naming.new] = naming.node


@dataclass(slots=True, eq=False)
class _Open:
    node: File | Folder
    path: str
    at: int = 0


class Disk:
    """What a process did to all below a directory, and what of it is certain."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = Folder()
        self.left_out: LeftOut = lambda _call, _path: False
        self._open: dict[int, _Open] = {}
        self._opening: dict[int, _Open] = {}  # by the call
        self._under_way: dict[int, Sequence[Change]] = {}

    def replay(self, step: Step) -> None:
        """Take a step in."""
        call = step.call
        if call.result is None or (call.result < 0 and call.name not in SYNCS):
            return
        if step.begins:
            begin: Callable[[Call], Sequence[Change]] | None = getattr(self, f"_{call.name}", None)
            self._under_way[id(call)] = [] if begin is None else begin(call)
            return
        if call.name == "openat" or id(call) in self._opening:
            # Only now: until then the number may have been that of another file, not quite closed.
            self._open.pop(call.result, None)
            if (opened := self._opening.pop(id(call), None)) is not None:
                self._open[call.result] = opened
        changes = self._under_way.pop(id(call))
        for change in changes:
            change.done = True
        if call.name in SYNCS and (opened := self._file(call)) is not None:
            for change in changes:
                change.given_up |= call.result < 0
                change.certain |= call.result == 0
            opened.node.settle()

    def after(self, cut: Cut) -> Tree:
        """Return what is there after a power cut."""
        return dict(_walk(self.top, "", lambda folder: _cut_names(folder, cut), cut))

    def now(self) -> Tree:
        """Return what a living process sees."""
        cut = Cut(random.Random(0), "all", "all")
        return dict(_walk(self.top, "", lambda folder: folder.now, cut))

    def killed(self) -> None:
        """End the process: its files are closed, and what it has done goes on to be uncertain."""
        self._open.clear()
        self._opening.clear()
        for node in self.nodes():
            for change in node.changes:
                change.done = True
                # The next one is told of no failure of names: a file system that loses those stops.
                change.given_up &= isinstance(node, File)
        self._under_way.clear()

    def nodes(self) -> Iterator[File | Folder]:
        """Go through all that has a name now."""
        left: list[File | Folder] = [self.top]
        while left:
            node = left.pop()
            yield node
            if isinstance(node, Folder):
                left += node.now.values()

    # One method for each call that is replayed, each returns what it has changed.

    def _openat(self, call: Call) -> Sequence[Change]:
        place = self._place(call.args[1], call.args[0])
        if place is None:
            return []
        folder, name, path = place
        changes: list[Change] = []
        node = folder.now.get(name) if name else folder
        if node is None:
            node = File()
            changes.append(self._name(folder, Naming(node, None, name)))
        elif "O_TRUNC" in call.args[2] and isinstance(node, File):
            changes.append(_changed(node, Resize(0)))
        self._opening[id(call)] = _Open(node, path)
        return changes

    def _close(self, call: Call) -> Sequence[Change]:
        self._open.pop(int(call.args[0]), None)
        return []

    def _fcntl(self, call: Call) -> Sequence[Change]:
        if call.args[1].startswith("F_DUPFD"):
            return self._dup(call)
        return []

    def _dup(self, call: Call) -> Sequence[Change]:
        if (opened := self._file(call)) is not None:
            self._opening[id(call)] = opened
        return []

    def _lseek(self, call: Call) -> Sequence[Change]:
        assert call.result is not None
        if (opened := self._file(call)) is not None:
            opened.at = call.result
        return []

    def _write(self, call: Call) -> Sequence[Change]:
        opened = self._file(call)
        if opened is None or not isinstance(opened.node, File):
            return []
        content = told_bytes(call.args[1])[: call.result]
        opened.at += len(content)
        return [_changed(opened.node, Write(opened.at - len(content), content))]

    def _pwrite64(self, call: Call) -> Sequence[Change]:
        opened = self._file(call)
        if opened is None or not isinstance(opened.node, File):
            return []
        content = told_bytes(call.args[1])[: call.result]
        return [_changed(opened.node, Write(int(call.args[3]), content))]

    def _ftruncate(self, call: Call) -> Sequence[Change]:
        opened = self._file(call)
        if opened is None or not isinstance(opened.node, File):
            return []
        return [_changed(opened.node, Resize(int(call.args[1])))]

    def _fsync(self, call: Call) -> Sequence[Change]:
        opened = self._file(call)
        if opened is None or self.left_out(call.name, opened.path):
            return []
        return [one for one in opened.node.changes if one.done and not one.given_up]

    _fdatasync = _fsync

    def _mkdir(self, call: Call) -> Sequence[Change]:
        return self._make(call.args[0], "AT_FDCWD")

    def _mkdirat(self, call: Call) -> Sequence[Change]:
        return self._make(call.args[1], call.args[0])

    def _unlink(self, call: Call) -> Sequence[Change]:
        return self._remove(call.args[0], "AT_FDCWD")

    _rmdir = _unlink

    def _unlinkat(self, call: Call) -> Sequence[Change]:
        return self._remove(call.args[1], call.args[0])

    def _rename(self, call: Call) -> Sequence[Change]:
        return self._move((call.args[0], "AT_FDCWD"), (call.args[1], "AT_FDCWD"))

    def _renameat(self, call: Call) -> Sequence[Change]:
        return self._move((call.args[1], call.args[0]), (call.args[3], call.args[2]))

    _renameat2 = _renameat

    def _make(self, path: str, at: str) -> Sequence[Change]:
        place = self._place(path, at)
        if place is None:
            return []
        folder, name, _ = place
        return [self._name(folder, Naming(Folder(), None, name))]

    def _remove(self, path: str, at: str) -> Sequence[Change]:
        place = self._place(path, at)
        if place is None:
            return []
        folder, name, _ = place
        return [self._name(folder, Naming(folder.now[name], name, None))]

    def _move(self, old: tuple[str, str], new: tuple[str, str]) -> Sequence[Change]:
        before, after = self._place(*old), self._place(*new)
        if before is None or after is None:
            return []
        folder, name, _ = before
        assert folder is after[0], "a rename from one directory to another is not modelled"
        return [self._name(folder, Naming(folder.now[name], name, after[1]))]

    def _name(self, folder: Folder, naming: Naming) -> Change:
        folder.changes.append(naming)
        _rename(folder.now, naming)
        return naming

    def _file(self, call: Call) -> _Open | None:
        return self._open.get(int(call.args[0]))

    def _place(self, path: str, at: str) -> tuple[Folder, str, str] | None:
        """Return the directory of a path, its name in it, and the path below the root."""
        below = told_bytes(path).decode()
        if not below.startswith("/") and at != "AT_FDCWD":
            opened = self._open.get(int(at))
            if opened is None:
                return None
            below = f"{opened.path}/{below}"
        else:
            whole = Path(below)
            if not whole.is_relative_to(self.root):
                return None
            below = str(whole.relative_to(self.root))
        parts = [part for part in below.split("/") if part not in {"", "."}]
        folder = self.top
        for part in parts[:-1]:
            inner = folder.now.get(part)
            assert isinstance(inner, Folder), f"{below}: {part} is no directory"
            folder = inner
        return folder, parts[-1] if parts else "", "/".join(parts)


def _changed(file: File, change: Change) -> Change:
    file.changes.append(change)
    return change


def _cut_names(folder: Folder, cut: Cut) -> Mapping[str, File | Folder]:
    names = dict(folder.base)
    for naming in cut.names(folder.changes):
        _rename(names, naming)
    return names


def _walk(
    folder: Folder, path: str, names: Callable[[Folder], Mapping[str, File | Folder]], cut: Cut
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in sorted(names(folder).items()):
        if isinstance(node, Folder):
            yield path + name, None
            yield from _walk(node, f"{path}{name}/", names, cut)
        else:
            yield path + name, cut.content(node.base, node.changes) if node.changes else node.base


def written(tree: Tree, at: Path) -> None:
    """Write a state to a directory that is not there yet."""
    at.mkdir(parents=True)
    for path, content in tree.items():
        if content is None:
            (at / path).mkdir()
        else:
            (at / path).write_bytes(content)


def found_at(root: Path) -> Tree:
    """Read what is really there."""
    paths = sorted(root.rglob("*"))
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in paths
    }


def certain(tree: Tree, root: Path) -> Disk:
    """Return a disk that has all of this for certain: power was cut, and it is on again."""
    disk = Disk(root)
    for path, content in tree.items():
        *parts, name = path.split("/")
        folder = disk.top
        for part in parts:
            folder = cast("Folder", folder.base[part])
        node = Folder() if content is None else File(content)
        folder.base[name] = node
        folder.now[name] = node
    return disk


def signature(tree: Tree) -> bytes:
    """Name a state by all that is in it."""
    digest = blake2b(digest_size=16)
    for path, content in tree.items():
        kind = -1 if content is None else len(content)
        digest.update(f"{path}\0{kind}\0".encode())
        digest.update(content or b"")
    return digest.digest()
