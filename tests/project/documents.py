"""Markdown as the tests of the documents read it: links, headings, and fenced blocks of code."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block: its language, the words after it, and the line it starts on."""

    language: str
    words: tuple[str, ...]
    body: str
    line: int

    @property
    def title(self) -> str | None:
        """The file it stands for: ``title="a.py"`` after the language, or a comment on top."""
        for word in self.words:
            if word.startswith("title="):
                return word.removeprefix("title=").strip('"')
        first = re.match(r"#\s*([\w./-]+\.(?:py|toml))\s*$", self.body.split("\n", 1)[0])
        return first.group(1) if first else None


def blocks(source: str) -> list[Block]:
    """All fenced blocks, in order."""
    found: list[Block] = []
    for match in FENCE.finditer(source):
        language, *words = match["info"].split() or [""]
        line = source.count("\n", 0, match.start()) + 1
        found.append(
            Block(language=language, words=tuple(words), body=match["body"], line=line),
        )
    return found


def links(source: str) -> list[str]:
    """Where the links outside code lead."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", source))
    return [match[0] or match[1] for match in LINK.findall(prose)]


def anchors(source: str) -> set[str]:
    """The fragments that headings give, as the usual renderers make them."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", source)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        slug, again = base, 0
        while slug in found:
            again += 1
            slug = f"{base}-{again}"
        found.add(slug)
    return found


def commands(block: Block) -> list[str]:
    """The commands of a shell block: prompts, comments and shown output left out."""
    joined = block.body.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines()]
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    stripped = (re.sub(r"\s+#\s.*$", "", line) for line in lines if not line.startswith("#"))
    return [line for line in stripped if line]


def resolve(document: Path, target: str) -> tuple[Path, str]:
    """The file and the fragment that a relative link of the document leads to."""
    path, _, fragment = target.partition("#")
    return (document.parent / path).resolve() if path else document, fragment
