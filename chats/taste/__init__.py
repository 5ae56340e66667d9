"""Which of two pictures people like better: candidates and ratings on disk, the pair to ask for next, and the
preference pairs that follow from them."""
