"""Models behind one seam, ``loom.Model``: an extractive one that needs nothing, and OpenAI's."""

from loom.models.extractive import ExtractiveModel
from loom.models.select import from_environment

__all__ = ["ExtractiveModel", "from_environment"]
