"""What can be wrong with a merge that a user asked for."""


class MergeError(ValueError):
    """A merge that cannot be carried out as asked; the message is one sentence for the user."""
