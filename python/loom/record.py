"""What is made once for each event derives from Record: it is made without a frame of Python.

It is msgspec's Struct, whose stub is not complete enough for the public names of a typed package.
"""

from typing import TYPE_CHECKING

from typing_extensions import dataclass_transform

if TYPE_CHECKING:

    @dataclass_transform()
    class Record:
        """A class of fields, made by position or keyword."""

        def __init_subclass__(
            cls, *, frozen: bool = False, gc: bool = True, eq: bool = True
        ) -> None: ...

else:
    from msgspec import Struct as Record

__all__ = ["Record"]
