"""Trains a reasoning LLM with CAPO: sampled solutions, a generative critic's verdict on each step, token credit.

Importing it loads nothing. A run is `capo_fast.train.run(config)`, or the command `torchrun -m capo_fast.train`.
"""

__version__ = "0.1.0"
