"""The one exception that stands for a user's mistake, and how others are told within it."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that says what was wrong, with which file or argument,
    and what to do. The command line prints it without a traceback.
    """


def first_line(error: Exception) -> str:
    """What an error says, cut to one line of at most 200 characters, between words; with the second
    line where the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = (lines or [type(error).__name__])[0]
    if line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1]}"
    return line if len(line) <= 200 else line[:196].rsplit(" ", 1)[0] + " ..."
