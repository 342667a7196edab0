"""Who takes part, and what they may see."""
