"""The one kind of error that a user can put right: shown as a message without a traceback, exit code 1."""


class UserError(ValueError):
    """Something typed, or something about this machine, is wrong; the message names it and the way out."""
