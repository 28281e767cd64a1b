"""What tests of apps use.

A Harness that runs an app with a virtual clock and a seed, and a ScriptedModel.
"""

from loom.testing.harness import Harness
from loom.testing.scripted import ScriptedModel

__all__ = ["Harness", "ScriptedModel"]
