"""The one exception of the package: for what its user can put right."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import fill


class DpoKitError(Exception):
    """Something that the user can put right. The message says what was found, where, and what to do.

    The command line prints it as one line and exits with code 2.
    """


@contextmanager
def refusal() -> Iterator[None]:
    """Show in a notebook how a check refuses: prints the first line of the DpoKitError that the block raises.

    The folders of paths are left out, because they differ by machine. Raises AssertionError where the block raises no
    DpoKitError, so that a notebook cannot show a check that no longer works.
    """
    try:
        yield
    except DpoKitError as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(fill(re.sub(r"/(?:[^/ ]+/)+", "", said), 96))
    else:
        raise AssertionError("this block was to be refused, and was not")
