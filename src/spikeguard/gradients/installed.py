"""Changes to torch itself that last while someone needs them, in any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock

from spikeguard.gradients.spike import Raw


class Shared:
    """A context that threads share: the first one enters what ``make`` gives, the last one leaves it."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self.make, self.lock, self.count, self.entered = make, Lock(), 0, ExitStack()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the context is open."""
        with self.lock:
            if not self.count:
                self.entered.enter_context(self.make())
            self.count += 1
        try:
            yield
        finally:
            with self.lock:
                self.count -= 1
                if not self.count:
                    self.entered.close()


@contextmanager
def replaced(owner: object, name: str, wrap: Callable[[Raw], Raw]) -> Iterator[None]:
    """An attribute is what ``wrap`` makes of it; afterwards it is the same object again, or inherited."""
    own, original = name in vars(owner), getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
