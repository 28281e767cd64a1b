"""Search over the documents on this machine: an SQLite full-text index, kept as a file.

It is built when first asked, by one thread of its own: neither the loop nor anyone's pool waits.
"""

import asyncio
import keyword
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from loom.models.words import COMMON
from loom.tools.documents import Document, documents, fingerprint
from loom.tools.search import SearchResult, SearchResults

_LOG: Final = logging.getLogger("loom.tools")

KEPT_INDEXES: Final = 4
"""Files in the cache; each belongs to one Python and its packages, the longest unused go first."""

QUERY_WORDS: Final = 32
"""Words of a query that count."""

_FORMAT: Final = 2  # of the index file: a change of tables or of what is cleaned makes a new one
_PASSAGE_CHARACTERS: Final = 1_000
_TEXT_CHARACTERS: Final = 2_400
_CANDIDATES: Final = 80
_TITLE_WEIGHT: Final = 6.0
_REFERENCE_WEIGHT: Final = 1.4
_PACKAGE_WEIGHT: Final = 0.5  # where it is not asked for by name
_DEPTH_WEIGHT: Final = 0.85  # for each dot of a name beyond the first
_VERSION: Final = re.compile(r" \d[\w.+!-]*$")
_SYNTAX: Final = frozenset({"statement", "statements", "keyword", "clause", "expression"})


class LocalLibrary:
    """A search provider over what is on this machine. Building the index takes a few seconds, once.

    Args:
        cache: Tells the directory to keep the index in; None, or one that cannot be written, keeps
            it in memory.
        corpus: What to index.
        version: Names the state of ``corpus``; another one makes another index.
    """

    name = "documents on this machine"

    def __init__(
        self,
        cache: Callable[[], Path | None] = lambda: None,
        *,
        corpus: Callable[[], Iterable[Document]] = documents,
        version: Callable[[], str] = fingerprint,
    ) -> None:
        self._cache = cache
        self._corpus = corpus
        self._version = version
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loom-search")
        self._index: sqlite3.Connection | None = None

    async def search(self, query: str, limit: int) -> SearchResults:
        """Return the ``limit`` documents that fit ``query`` best."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._search, query, limit
        )

    async def aclose(self) -> None:
        """Close the index; the provider cannot be used afterwards."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

    def _search(self, query: str, limit: int) -> SearchResults:
        if self._index is None:
            self._index = self._open()
        (total,) = self._index.execute("SELECT count(*) FROM documents").fetchone()
        terms = _terms(query)
        found = _ranked(self._index, terms)[:limit] if terms else []
        return SearchResults(
            query=query,
            provider=self.name,
            documents=total,
            results=[_result(self._index, *hit, terms) for hit in found],
        )

    def _open(self) -> sqlite3.Connection:
        cache = self._cache()
        if cache is not None:
            with suppress(OSError, sqlite3.Error):
                return self._kept(cache)
        index = sqlite3.connect(":memory:", check_same_thread=False)
        _fill(index, self._corpus())
        return index

    def _kept(self, cache: Path) -> sqlite3.Connection:
        """Return the index from its file, made first if it is not there or cannot be read."""
        path = cache / f"search-{_FORMAT}-{self._version()}.sqlite"
        with suppress(OSError, sqlite3.Error):
            index = _read(path)
            path.touch()
            return index
        cache.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(prefix=".search-", suffix=".tmp", dir=cache)
        os.close(handle)
        try:
            with closing(sqlite3.connect(written)) as index:
                _fill(index, self._corpus())
            Path(written).replace(path)
        finally:
            Path(written).unlink(missing_ok=True)
        _forget_old(cache)
        return _read(path)


def _read(path: Path) -> sqlite3.Connection:
    index = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
    try:
        index.execute("SELECT rowid FROM passages WHERE passages MATCH 'python' LIMIT 1").fetchone()
        index.execute("SELECT count(*) FROM documents").fetchone()
    except sqlite3.Error:
        index.close()
        raise
    return index


def _forget_old(cache: Path) -> None:
    files = sorted(cache.glob("search-*.sqlite"), key=lambda path: path.stat().st_mtime)
    for path in files[:-KEPT_INDEXES]:
        path.unlink(missing_ok=True)


def _fill(index: sqlite3.Connection, corpus: Iterable[Document]) -> None:
    _LOG.info("indexing the documents on this machine, once; it takes a few seconds")
    index.executescript(
        """
        PRAGMA journal_mode = OFF;
        PRAGMA synchronous = OFF;
        CREATE TABLE documents (id INTEGER PRIMARY KEY, ref TEXT, title TEXT, source TEXT);
        CREATE VIRTUAL TABLE passages USING fts5(
            title, body, document UNINDEXED, tokenize = 'porter unicode61'
        );
        """
    )
    with index:
        for number, document in enumerate(corpus):
            index.execute(
                "INSERT INTO documents VALUES (?, ?, ?, ?)",
                (number, document.ref, document.title, document.source),
            )
            index.executemany(
                "INSERT INTO passages VALUES (?, ?, ?)",
                ((_title_words(document.title), body, number) for body in _passages(document)),
            )


def _passages(document: Document) -> Iterator[str]:
    """Yield pieces of whole paragraphs, so that a long document is found by its parts."""
    held: list[str] = []
    size = 0
    for paragraph in document.paragraphs:
        if held and size + len(paragraph) > _PASSAGE_CHARACTERS:
            yield "\n".join(held)
            held, size = [], 0
        held.append(paragraph)
        size += len(paragraph)
    if held:
        yield "\n".join(held)


def _title_words(title: str) -> str:
    """Return the title and the parts of its names: "ordered dict" finds ``OrderedDict``."""
    apart = _apart(title)
    return title if apart == title else f"{title} {apart}"


def _apart(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"\w+", text.casefold())))


def _terms(query: str) -> list[str]:
    words = _words(query)
    syntax = (
        keyword.kwlist if _SYNTAX.intersection(words) else ()
    )  # "the with statement" is about "with"
    telling = [word for word in words if word not in COMMON or word in syntax]
    return (telling or words)[:QUERY_WORDS]


def _ranked(index: sqlite3.Connection, terms: Sequence[str]) -> list[tuple[int, int, float]]:
    """Return (document, best passage, score), best first.

    BM25 finds candidates by any of the terms. Among them count how many of the terms a passage has,
    so that one rare word does not win over all others together, and how much of the title was asked
    for: who asks for an asyncio queue wants ``asyncio.Queue`` before its methods.
    """
    rows = index.execute(
        "SELECT document, rowid, -bm25(passages, ?, 1.0), body FROM passages "
        "WHERE passages MATCH ? ORDER BY bm25(passages, ?, 1.0) LIMIT ?",
        (_TITLE_WEIGHT, " OR ".join(map(_quoted, terms)), _TITLE_WEIGHT, _CANDIDATES),
    ).fetchall()
    rowids = [row[1] for row in rows]
    having = _counts(index, rowids, [_quoted(term) for term in terms])
    titled = _counts(index, rowids, [f"title : {_quoted(term)}" for term in terms])
    hits: list[tuple[float, int, int, str]] = []
    for document, rowid, score, body in rows:
        title, ref = index.execute(
            "SELECT title, ref FROM documents WHERE id = ?", (document,)
        ).fetchone()
        words = {word.rstrip("es") for word in _words(_apart(_VERSION.sub("", title)))}
        named = min(1.0, titled[rowid] / max(1, len(words)))
        share = having[rowid] / len(terms)
        weight = _weight(ref, named)
        hits.append((weight * score * share**2 * (1 + named), document, rowid, body))
    hits.sort(key=lambda hit: (-hit[0], hit[2]))
    best: dict[int, tuple[int, int, float]] = {}
    told: set[str] = set()
    for score, document, rowid, body in hits:
        if document not in best and body not in told:
            best[document] = (document, rowid, score)
        told.add(body)
    return list(best.values())


def _weight(ref: str, named: float) -> float:
    """Return what such a document is worth: the reference explains, a method tells details."""
    if ref.startswith("pydoc:"):
        return _REFERENCE_WEIGHT
    if ref.startswith("dist:"):
        return 1.0 if named else _PACKAGE_WEIGHT
    return 1.0 if named == 1.0 else _DEPTH_WEIGHT ** max(0, ref.count(".") - 1)


def _counts(
    index: sqlite3.Connection, rowids: Sequence[int], expressions: Sequence[str]
) -> dict[int, int]:
    """Return how many of the expressions each of these passages matches."""
    counts = dict.fromkeys(rowids, 0)
    for expression in expressions:
        found = index.execute(
            "SELECT rowid FROM passages WHERE passages MATCH ? "
            "AND rowid IN (SELECT value FROM json_each(?))",
            (expression, str(list(rowids))),
        )
        for (rowid,) in found:
            counts[rowid] += 1
    return counts


def _result(
    index: sqlite3.Connection, document: int, passage: int, score: float, terms: Sequence[str]
) -> SearchResult:
    ref, title, source = index.execute(
        "SELECT ref, title, source FROM documents WHERE id = ?", (document,)
    ).fetchone()
    (snippet,) = index.execute(
        "SELECT snippet(passages, 1, '', '', '…', 24) FROM passages "
        "WHERE passages MATCH ? AND rowid = ?",
        (" OR ".join(map(_quoted, terms)), passage),
    ).fetchone()
    (first,) = index.execute(
        "SELECT min(rowid) FROM passages WHERE document = ?", (document,)
    ).fetchone()
    bodies = index.execute(  # rowids are consecutive: what leads the document, and what was found
        "SELECT body FROM passages WHERE document = ? AND rowid IN (?, ?, ?) ORDER BY rowid",
        (document, first, passage, passage + 1),
    ).fetchall()
    text = "\n".join(body for (body,) in bodies)
    return SearchResult(
        title=title,
        ref=ref,
        source=source,
        score=round(score, 3),
        snippet=" ".join(snippet.split()),
        text=text[:_TEXT_CHARACTERS].rstrip(),
    )


def _quoted(term: str) -> str:
    return f'"{term}"'
