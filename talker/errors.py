"""The one exception that stands for a user's mistake rather than a bug."""


class UserError(Exception):
    """Bad input: says which file, what was expected, what was found and what to do.

    The command line prints it as one message, without a traceback, and exits with status 1.
    """
