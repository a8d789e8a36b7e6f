"""Exchange of a step's rollouts between ranks.

    rank that sampled   -> whole groups  -> rank that computes their credit            samples.py
    every rank          <- figures       <- numbers of each rollout, no tokens         figures.py
    rank that learns    <- columns       <- contents of its micro-batches              columns.py
    first rank          <- bytes         <- rows of the rollouts file                  tensors.py

Per-token data is sent as tensors, and only to the rank that uses it.
"""
