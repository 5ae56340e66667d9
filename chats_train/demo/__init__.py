"""The demo: a tiny base of our own, pairs drawn on the spot, a short CHATS run, and what was counted. Importing this is
light."""
