"""The one exception of this package."""


class TokenizerError(ValueError):
    """A file, text, id or conversation that cannot be used; the message is one line and says what to do."""
