"""Settings: their schema, layers, presets and rules."""
