"""`capo plan`: the memory and the time of a run, from its settings and named hardware, before any device is rented."""
