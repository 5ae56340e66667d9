"""What a user can mend."""


class UserError(ValueError):
    """A setting, a file or a data set that cannot be used; the message is one sentence that names it, its value and the
    way out."""
