"""The trained model: batches, updates, weights into the engine, checkpoints."""
