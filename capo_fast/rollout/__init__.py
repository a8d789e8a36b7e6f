"""Requests to the engine and the rollouts and critiques that come back."""
