"""The one exception that stands for a failure the user can mend."""


class KvguardError(Exception):
    """A failure the user can mend; its message is one line: what, where, how to mend.

    The shell commands and stage scripts print the message without a traceback and exit with 1.
    """
