"""Named places in the code where a test can crash the process or hold it at a barrier.

`reach("upload.completed")` does nothing in the product. The name is a literal, unique in the tree, in the form
`<module>.<what has just happened>`: the test suite finds every name in the source and fails when one was never
reached.
"""

from __future__ import annotations

from collections.abc import Callable

Hook = Callable[[str], None]
_hook: Hook | None = None


def install(hook: Hook | None) -> Hook | None:
    """Call `hook(name)` at every place from now on, in every thread; -> the hook before. For tests."""
    global _hook
    before, _hook = _hook, hook
    return before


def reach(name: str) -> None:
    """The code got here. Raises whatever the installed hook raises."""
    if _hook is not None:
        _hook(name)
