"""The shipped settings, installed as `capo_fast.configs`; a package so that importlib.resources finds them."""
