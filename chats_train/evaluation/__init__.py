"""What a pair is worth: pictures of a prompt file under every sampling condition, scored by what the user has, compared
by prompt."""
