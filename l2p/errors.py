"""The one kind of error a user sees."""


class UserError(ValueError):
    """One clear line: what was wrong, what was expected, what to do."""
