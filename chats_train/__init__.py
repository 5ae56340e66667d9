"""The trainer of preferred/dispreferred pairs: `python -m chats_train`."""
