"""What is wrong with a base."""

from __future__ import annotations

from ..support.errors import UserError


class SourceError(UserError):
    """A base model that cannot be used; the message is one sentence that names the setting and the way out."""
