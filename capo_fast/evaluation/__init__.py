"""Judging what a model solves and what a critic finds: benchmarks, verdicts, statistics, and the files they leave."""
