"""Processes, ranks, failures and files."""
