"""`capo plan`: predicts memory and time of a run from its settings and named hardware."""
