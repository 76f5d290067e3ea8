"""The one exception family of the package: what the reader can put right."""


class DpoKitError(Exception):
    """Something the reader can put right; the message says what was found, where, and what to do.

    The command line prints it as one line and exits with code 2.
    """
