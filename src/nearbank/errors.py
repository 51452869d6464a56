"""The one exception a user is meant to see: one line that says what, where, what was expected, what to do."""


class NearbankError(ValueError):
    """Wrong input. The command line prints the message on one line and exits with status 2."""
