"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that says what was wrong, with which file or argument,
    and what to do. The command line prints it without a traceback.
    """
