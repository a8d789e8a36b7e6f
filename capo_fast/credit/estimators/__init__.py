"""Credit estimators, one per file: values of `credit.process`, and examples for `credit.fn`."""
