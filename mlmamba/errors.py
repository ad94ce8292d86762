"""The one exception that a user sees, and what becomes of it where memory is short."""


class UserError(Exception):
    """Something that the user can mend; the message is one sentence that says how."""


class MemoryFull(UserError):
    """There was no memory for what was asked."""
