"""Training: from what the user asks to a run that goes on by itself."""
