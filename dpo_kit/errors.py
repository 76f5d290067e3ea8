"""The exception of this package, for every error that its user can correct."""


class DpoKitError(Exception):
    """An error that the user can correct. The message says what was found, where, and what to do.

    The command line prints it as one line and exits with code 2.
    """
