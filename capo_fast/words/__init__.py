"""A world of words: seeded word problems of two to four steps, with a rule that judges every step.

`python -m capo_fast.words --out DIR` writes its problems, its fine-tuning data and its labelled solutions.
"""
