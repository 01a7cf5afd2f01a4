"""Compiled programs that are kept while many data sets of one shape are fitted one by one."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import Any

_KEPT: ContextVar[dict[Hashable, Any] | None] = ContextVar("kept_programs", default=None)


@contextlib.contextmanager
def keeping_programs() -> Iterator[None]:
    """Within, an engine that asks `kept` compiles a program once for all data of equal shapes.

    Only within: a program may read what is not among its arguments, such as a global variable of a
    notebook, and two fits must not share what is compiled if that has changed between them. Inside
    it must not change.
    """
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def kept[T](key: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` returned for an equal key before, or what it returns now.

    It is called whenever nothing is kept, and where the key has no hash because a part has none.
    """
    store = _KEPT.get()
    try:
        hash(key)
    except TypeError:
        store = None
    if store is None:
        return make()
    if key not in store:
        store[key] = make()
    return store[key]
