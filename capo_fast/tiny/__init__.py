"""The embedded default: a small arithmetic world with its own tokenizer, model and critic.

`python -m capo_fast.tiny` regenerates this folder: `model/`, `critic/`, `train.jsonl.gz` and
`heldout.jsonl`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
CRITIC = FOLDER / "critic"
"""The critic of single steps (`critic.reads: step`)."""
TRAIN = FOLDER / "train.jsonl.gz"
HELDOUT = FOLDER / "heldout.jsonl"
