"""What passes between ranks of a step's rollouts.

    rank that sampled   -> whole groups  -> rank that computes their credit            samples.py
    every rank          <- figures       <- numbers of each rollout, no tokens         figures.py
    rank that learns    <- columns       <- what its micro-batches are packed of       columns.py
    first rank          <- bytes         <- rows of the rollouts file                  tensors.py

All that there is per token travels as tensors, and only to the rank that uses it.
"""
