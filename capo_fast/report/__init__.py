"""What the report's page is made of: runs as they lie on disk, their curves, the credit map of their rollouts."""
