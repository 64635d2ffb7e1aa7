"""What is closed at the end of a with block."""

from typing import Self


class Closing:
    """Has close(), for `with` to call however the block ends."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
