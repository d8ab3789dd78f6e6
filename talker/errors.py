"""The exception for mistakes of the user, as opposed to bugs, and the wording of its numbers."""


class UserError(Exception):
    """Bad input. The message names the file or option, what was found, and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """


def counted(count: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural, such as `1 frame` or `2 frames`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
