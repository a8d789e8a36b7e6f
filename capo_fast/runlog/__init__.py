"""What a run records and shows: metrics, rollouts, progress, console."""
