"""What a search is: its results, and the interface of whoever searches, here or online."""

from typing import Protocol

from pydantic import BaseModel


class SearchResult(BaseModel):
    """One document that was found.

    Attributes:
        ref: What to cite: a URL, or a name such as ``python:asyncio.Queue`` for a document on this
            machine.
        snippet: The words around what was searched for.
        text: What the document says about it, as plain prose of whole paragraphs.
        score: Higher fits better; comparable within one search only.
        source: Where the document is from.
    """

    title: str
    ref: str
    snippet: str
    text: str
    score: float
    source: str


class SearchResults(BaseModel):
    """What one search found, best first, and who searched among how many documents, if known."""

    query: str
    provider: str
    documents: int | None = None
    results: list[SearchResult]


class SearchProvider(Protocol):
    """Whoever searches."""

    async def search(self, query: str, limit: int) -> SearchResults:
        """Return at most ``limit`` results.

        Raises:
            ProviderUnavailable: it cannot be reached.
        """
        ...
