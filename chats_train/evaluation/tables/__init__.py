"""The paper's tables, a command each: what they hold, our figures for them, and the paper's beside."""
