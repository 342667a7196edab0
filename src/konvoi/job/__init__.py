"""What is learned: the model, the data, the objective, the optimizer."""
