"""The report's page: runs read from disk, their curves, the credit map of their rollouts."""
