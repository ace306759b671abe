"""The only code that opens sockets to a source of market data; what a source refuses is a `SourceError`."""


class SourceError(Exception):
    """A source did not give what was asked; the text is one sentence for the user.

    `retry_after_s` is how long the source wants to be left alone (None = it did not say), `code` its own error
    number (Binance: -1121 = unknown symbol), `status` the HTTP status (None = there was no answer at all).
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, code: int | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.code = code
        self.status = status

    @property
    def is_final(self) -> bool:
        """Whether the source has understood the question and says no: asking again is in vain."""
        return self.code is not None and self.retry_after_s is None and (self.status or 500) < 500
