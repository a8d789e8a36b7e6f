"""Credit: from a response and its critiques to a verdict on every step."""
