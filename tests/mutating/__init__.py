"""Inputs damaged at random, and what becomes of them: each is taken, or refused in one sentence."""
