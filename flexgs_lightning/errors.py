"""The one exception that a user is meant to read."""


class InputError(ValueError):
    """Bad input: a file, folder, option or value that the user can mend.

    The message is one sentence or two that name the file or option, what was found and what was
    expected. The command line prints it without a traceback and exits with status 1.
    """
