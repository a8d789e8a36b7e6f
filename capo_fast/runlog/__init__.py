"""Records and console output of a run: metrics, rollouts, progress."""
