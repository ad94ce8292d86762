"""The one exception that a user sees."""


class UserError(Exception):
    """Something that the user can mend; the message is one sentence that says how."""
