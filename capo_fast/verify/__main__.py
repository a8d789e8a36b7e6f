"""`python -m capo_fast.verify` is `capo verify`."""

import sys

from capo_fast.evaluation.verdicts import main

if __name__ == "__main__":
    sys.exit(main())
