"""What survives: checkpoints, the run's folder, exports."""
