"""Which pages of a cache are taken, and by how many owners."""

from collections.abc import Iterable

import numpy as np


class PagePool:
    """Pages 0 .. `pages` - 1, each free or taken by one or more owners."""

    def __init__(self, pages: int) -> None:
        self._free = list(range(pages))[::-1]  # the last one is taken next, so first pages lie together
        self._owners = np.zeros(pages, np.int64)

    def __len__(self) -> int:
        """All pages."""
        return len(self._owners)

    @property
    def free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def owners(self, page: int) -> int:
        """How many own a page."""
        return int(self._owners[page])

    def take(self) -> int:
        """A free page, now with one owner.

        Raises:
            IndexError: there is none; the engine admits no request whose pages are not there (Engine._admit).
        """
        page = self._free.pop()
        self._owners[page] = 1
        return page

    def share(self, pages: Iterable[int]) -> None:
        """Give each of these taken pages another owner."""
        for page in pages:
            assert self._owners[page] > 0, f"page {page} is free"
            self._owners[page] += 1

    def give_back(self, pages: Iterable[int]) -> None:
        """Take an owner from each of these pages; those without any are free again."""
        for page in pages:
            assert self._owners[page] > 0, f"page {page} is free"
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)
