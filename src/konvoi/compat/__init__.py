"""Programs written for others, on Konvoi."""
