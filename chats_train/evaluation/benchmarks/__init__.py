"""GenEval and DPG-Bench: what their prompts ask for, and which models look."""
