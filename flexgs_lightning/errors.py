"""The one exception that a user is meant to read."""

_LONGEST, _BEGINNING, _END = 1_200, 800, 300
"""Letters of a message; of a longer one, which some file's endless names make so, both ends are shown."""


class InputError(ValueError):
    """Bad input: a file, folder, option or value that the user can mend.

    The message is one sentence or two that name the file or option, what was found and what was
    expected. The command line prints it without a traceback and exits with status 1. It is one line, whatever
    of it came from a file or a server, and no longer than somebody reads.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= _LONGEST else f"{text[:_BEGINNING]} … {text[-_END:]}"


def printable(text: str) -> str:
    """Text of others on one line: line ends become spaces, and what would steer a terminal is escaped."""
    lines = text.splitlines()
    folded = " ".join(filter(None, map(str.strip, lines))) if len(lines) > 1 else text
    if folded.isprintable():
        return folded
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in folded.rstrip("\n"))
    return "".join(shown)


def require_fields(where: str, options: object, checks: dict[str, tuple[bool, str]]) -> None:
    """Refuse options of which a field is out of range.

    Args:
        where: what stands before a field's name where users set it, such as "model.elastic.".
        options: whose fields these are.
        checks: for each field whether it is good, and what is expected of it.

    Raises:
        InputError: the first that is not.
    """
    for name, (good, expected) in checks.items():
        if not good:
            raise InputError(f"{where}{name}: expected {expected}, found {getattr(options, name)}.")
