"""The one exception that stands for a user's mistake, and how others are told within it."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that says what was wrong, with which file or argument,
    and what to do. The command line prints it without a traceback.
    """


def first_line(error: Exception) -> str:
    """What an error says, cut to one line of at most 200 characters, between words."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:196].rsplit(" ", 1)[0] + " ..."
