"""Evaluation of models and critics: benchmarks, verdicts, statistics, and the files of results."""
