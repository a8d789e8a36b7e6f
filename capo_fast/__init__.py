"""Trains a reasoning LLM with CAPO: sampled solutions, a generative critic's verdict on each step, credit for tokens.

Importing it loads nothing: the run is `capo_fast.train.run(config)`, the command `torchrun -m capo_fast.train`.
"""

__version__ = "0.1.0"
