"""What a pure function of one text has given, remembered: hundreds of images of a series say the same.

Of short texts alone: long ones come from whoever means harm, and would be kept for as long as we run.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

_Text = TypeVar("_Text", str, bytes)
_Result = TypeVar("_Result")


def remembered(most: int, longest: int) -> Callable[[Callable[[_Text], _Result]], Callable[[_Text], _Result]]:
    """The latest `most` results for texts of at most `longest` characters or bytes."""

    def decorate(function: Callable[[_Text], _Result]) -> Callable[[_Text], _Result]:
        kept = lru_cache(maxsize=most)(function)

        @wraps(function)
        def remembering(text: _Text, /) -> _Result:
            return kept(text) if len(text) <= longest else function(text)

        return remembering

    return decorate
