"""Training on a teacher's vectors of unlabelled texts."""
