"""What is closed at the end of a with block."""

from __future__ import annotations

from typing_extensions import Self


class Closing:
    """Something with connections, for `async with` in a coroutine and `with` in other code.

    The end of a block closes it for all who use it; whoever uses it after that opens it again.
    """

    async def close(self) -> None:
        """Close it."""
        raise NotImplementedError

    def close_sync(self) -> None:
        """Close it from code without an event loop."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_sync()
