"""web.search: the documents on this machine, found by any words."""

import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.errors import InvalidParams
from loom.tools import web
from loom.tools.documents import PACKAGE_DOCS, PYTHON_DOCS, Document, documents
from loom.tools.library import KEPT_INDEXES, LocalLibrary
from loom.tools.search import SearchResults

pytestmark = pytest.mark.timeout(120)  # the first look reads all documents of the machine

FEW = [
    Document(
        "pydoc:topic/with", "The with statement", PYTHON_DOCS, ["The with statement wraps a block."]
    ),
    Document("python:asyncio.Queue", "asyncio.Queue", PYTHON_DOCS, ["A queue for coroutines."]),
    Document(
        "python:asyncio.QueueFull", "asyncio.QueueFull", PYTHON_DOCS, ["Raised by a full queue."]
    ),
    Document(
        "dist:parcel 1.0",
        "parcel 1.0",
        PACKAGE_DOCS,
        ["Carries parcels around the world, quickly."],
    ),
]


class Corpus:
    """A few documents, and how often they were read."""

    def __init__(self, kept: Iterable[Document] = FEW) -> None:
        self.kept = list(kept)
        self.read = 0

    def __call__(self) -> list[Document]:
        self.read += 1
        return self.kept


@asynccontextmanager
async def library(
    corpus: Corpus, cache: Path | None = None, version: str = "one"
) -> AsyncGenerator[LocalLibrary, None]:
    made = LocalLibrary(lambda: cache, corpus=corpus, version=lambda: version)
    try:
        yield made
    finally:
        await made.aclose()


def kept_in(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


async def refs(corpus: Corpus, query: str, limit: int = 5) -> list[str]:
    async with library(corpus) as searched:
        return [hit.ref for hit in (await searched.search(query, limit)).results]


@pytest.mark.requirement("TOOLS-OFFLINE")
async def test_a_result_names_its_document_and_where_it_is_from() -> None:
    async with library(Corpus()) as searched:
        found = await searched.search("who carries parcels?", 1)
    assert (found.provider, found.documents) == ("documents on this machine", len(FEW))
    (hit,) = found.results
    assert (hit.ref, hit.title, hit.source) == ("dist:parcel 1.0", "parcel 1.0", PACKAGE_DOCS)
    assert "parcels" in hit.snippet
    assert hit.text == "Carries parcels around the world, quickly."
    assert hit.score > 0


async def test_what_is_asked_for_by_name_comes_first() -> None:
    assert (await refs(Corpus(), "What is an asyncio queue in Python?"))[0] == (
        "python:asyncio.Queue"
    )


async def test_a_keyword_that_is_a_common_word_is_found_when_syntax_is_asked_for() -> None:
    assert (await refs(Corpus(), "what is the with statement"))[0] == "pydoc:topic/with"


async def test_names_are_found_by_their_parts() -> None:
    assert "python:asyncio.QueueFull" in await refs(Corpus(), "queue full")


async def test_words_that_are_nowhere_find_nothing() -> None:
    assert await refs(Corpus(), "zymurgy") == []


async def test_the_limit_holds() -> None:
    assert len(await refs(Corpus(), "queue", limit=1)) == 1


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "AND OR NOT",
        "NEAR(a b)",
        "col:term",
        "a* -b ^c",
        "'; DROP TABLE documents",
        "queue\x00",
    ],
)
async def test_operators_of_the_index_are_only_words(query: str) -> None:
    async with library(Corpus()) as searched:
        assert isinstance(await searched.search(query, 5), SearchResults)


@given(st.text(max_size=200))
def test_no_text_breaks_the_index(query: str) -> None:
    searched = _SHARED._search(query, 5)  # pyright: ignore[reportPrivateUsage]
    assert len(searched.results) <= len(FEW)


_SHARED = LocalLibrary(corpus=Corpus())


# -- the file --------------------------------------------------------------------------------------


async def test_the_index_is_built_once_and_kept_as_a_file(tmp_path: Path) -> None:
    corpus = Corpus()
    for _ in range(2):
        async with library(corpus, tmp_path / "cache") as searched:
            assert (await searched.search("queue", 5)).results
    assert corpus.read == 1
    assert [path.suffix for path in kept_in(tmp_path / "cache")] == [".sqlite"]


async def test_another_state_of_the_documents_makes_another_index(tmp_path: Path) -> None:
    corpus = Corpus()
    for version in ("one", "two"):
        async with library(corpus, tmp_path, version) as searched:
            await searched.search("queue", 5)
    assert corpus.read == 2


async def test_the_number_of_kept_indexes_is_bounded(tmp_path: Path) -> None:
    for number in range(KEPT_INDEXES + 3):
        async with library(Corpus(), tmp_path, f"v{number}") as searched:
            await searched.search("queue", 5)
    assert len(kept_in(tmp_path)) == KEPT_INDEXES


async def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    corpus = Corpus()
    for _ in range(2):
        async with library(corpus, tmp_path) as searched:
            assert (await searched.search("queue", 5)).results
        (kept,) = kept_in(tmp_path)
        kept.write_bytes(b"not a database at all" * 500)
    assert corpus.read == 2


async def test_a_directory_that_cannot_be_made_keeps_the_index_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    async with library(Corpus(), tmp_path / "file" / "cache") as searched:
        assert (await searched.search("queue", 5)).results


def test_the_cache_belongs_to_the_user_and_follows_the_environment() -> None:
    assert web.cache_directory({"LOOM_HOME": "/l", "HOME": "/h"}) == Path("/l/cache")
    assert web.cache_directory({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/loom")
    assert web.cache_directory({"HOME": "/h"}) == Path("/h/.cache/loom")
    assert web.cache_directory({}) is None


# -- the capability --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "limit", "field"),
    [("", 5, "query"), (" ?! ", 5, "query"), ("x" * 1_001, 5, "query"), ("x", 0, "limit")],
)
async def test_bad_arguments_are_refused_by_name(query: str, limit: int, field: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        await web.search(query, limit)
    assert refused.value.field == field


async def test_whoever_provides_answers_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        async def search(self, query: str, limit: int) -> SearchResults:
            return SearchResults(query=query, provider="other", results=[])

    monkeypatch.setattr(web, "provider", Other())
    assert (await web.search("anything")).provider == "other"


# -- what is really on this machine ----------------------------------------------------------------


@pytest.fixture(scope="module")
def here() -> dict[str, Document]:
    return {document.ref: document for document in documents()}


@pytest.mark.requirement("TOOLS-OFFLINE")
def test_at_least_three_hundred_documents_are_on_this_machine(here: dict[str, Document]) -> None:
    assert len(here) >= 300
    kinds = {ref.partition(":")[0] for ref in here}
    assert kinds >= {"python", "dist"}


def test_every_document_has_prose_and_can_be_cited(here: dict[str, Document]) -> None:
    for document in here.values():
        assert document.title
        assert document.paragraphs
        assert all(paragraph.strip() for paragraph in document.paragraphs)


def test_a_name_is_the_one_that_is_imported(here: dict[str, Document]) -> None:
    assert "python:asyncio.Queue" in here
    assert "python:asyncio.queues.Queue" not in here
    assert any(ref.startswith("dist:pydantic ") for ref in here)


def test_reading_the_documents_imports_none_of_what_they_describe() -> None:
    code = (
        "import sys; from loom.tools.documents import documents; n = len(list(documents()));"
        "print(n, sorted({'tkinter', 'antigravity', 'turtle', 'ftplib'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split(" ", 1)[1].strip() == "[]"


@pytest.mark.parametrize("module", ["loom.tools.web", "loom.tools.weather"])
def test_importing_a_tool_loads_no_http_client(module: str) -> None:
    code = f"import sys, {module}; print('httpx2' in sys.modules, 'openai' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]


def test_the_index_of_this_python_can_search_full_text() -> None:
    with sqlite3.connect(":memory:") as made:
        made.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize = 'porter unicode61')")
    made.close()
