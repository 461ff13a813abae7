"""The error for mistakes of the user, which reports all of them at once."""

from collections.abc import Iterable


class UsageError(ValueError):
    """Mistakes found before anything was started. `mistakes` has a message for each."""

    def __init__(self, mistakes: str | Iterable[str]) -> None:
        self.mistakes = (mistakes,) if isinstance(mistakes, str) else tuple(mistakes)
        super().__init__("\n".join(self.mistakes))
