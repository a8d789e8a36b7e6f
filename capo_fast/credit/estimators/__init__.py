"""Credit estimators, a file each: by `credit.process`, or as models for `credit.fn`."""
