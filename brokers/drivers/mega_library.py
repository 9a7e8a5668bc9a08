"""The one place that imports mega.py, with the mend that version 1.0.8 needs.

mega.py holds on to tenacity 5, which decorates with `asyncio.coroutine` while it is imported; Python 3.11 no
longer has that name. It is lent for the time of the import and then taken away again, so that nobody else takes
this for an old Python.
"""

from __future__ import annotations

import asyncio
import types
from typing import Any

_lent = not hasattr(asyncio, "coroutine")
if _lent:
    asyncio.coroutine = types.coroutine  # type: ignore[attr-defined]
try:
    from mega import Mega as _Mega
    from mega import crypto as _crypto
finally:
    if _lent:
        del asyncio.coroutine  # type: ignore[attr-defined]

# The library has no type hints.
Mega: Any = _Mega
crypto: Any = _crypto
