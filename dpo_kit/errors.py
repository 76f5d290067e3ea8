"""The one exception of the package: for what its user can put right."""


class DpoKitError(Exception):
    """Something that the user can put right. The message says what was found, where, and what to do.

    The command line prints it as one line and exits with code 2.
    """
