"""The exception for mistakes of the user, as opposed to bugs."""


class UserError(Exception):
    """Bad input. The message names the file or option, what was found, and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """
