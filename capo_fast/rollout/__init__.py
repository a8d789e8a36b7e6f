"""Requests to the engine, and the resulting rollouts and critiques."""
