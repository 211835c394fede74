"""What stops a script without being a fault of it: wrong input, and time that is up."""


class UserError(Exception):
    """Input that its giver can mend. The scripts print it as one line and exit with code 2.

    The text says what was wrong, what was expected and what to do.
    """


class OutOfTime(Exception):
    """Training stopped at its deadline, with a checkpoint to go on from."""
