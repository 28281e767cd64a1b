"""``web.search``: documents that fit a query, each with a reference to cite it by.

Without a network the documents are the ones on this machine, and every result says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import loom
from loom.config import load
from loom.errors import InvalidParams
from loom.tools.library import LocalLibrary
from loom.tools.search import SearchProvider, SearchResult, SearchResults

__all__ = ["SearchProvider", "SearchResult", "SearchResults", "app", "provider", "search"]

RESULTS_MAX: Final = 50
QUERY_CHARACTERS: Final = 1_000

app: loom.App = loom.App("web")


def cache_directory(environment: Mapping[str, str]) -> Path | None:
    """Return where this user's caches of Loom belong; None where the environment does not tell."""
    if home := environment.get("LOOM_HOME"):
        return Path(home) / "cache"
    if base := environment.get("XDG_CACHE_HOME"):
        return Path(base) / "loom"
    return Path(home) / ".cache" / "loom" if (home := environment.get("HOME")) else None


provider: SearchProvider = LocalLibrary(lambda: cache_directory(load().environment))
"""Who answers ``web.search``."""


@app.capability("web.search", effect="pure", timeout=30)
async def search(query: str, limit: int = 5) -> SearchResults:
    """Search for documents, best first.

    Raises:
        InvalidParams: ``query`` has no word in it or is too long, or ``limit`` is out of range.
    """
    if not any(character.isalnum() for character in query):
        raise InvalidParams(
            "there is no word in the query", field="query", hint="ask for something"
        )
    if len(query) > QUERY_CHARACTERS:
        raise InvalidParams(
            f"a query has at most {QUERY_CHARACTERS} characters",
            field="query",
            hint="search for a few words",
        )
    if not 0 < limit <= RESULTS_MAX:
        raise InvalidParams(f"limit is 1 to {RESULTS_MAX}", field="limit")
    return await provider.search(query, limit)
