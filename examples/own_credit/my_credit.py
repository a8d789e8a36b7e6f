"""The wrongness of a step is the share of wrong answers among the group's rollouts that contain it, word for word."""

from collections import defaultdict

from capo_fast.credit.groups import StepCredit


def by_peers(groups):
    return StepCredit([share_of_wrong(group.samples) for group in groups])


def share_of_wrong(samples):
    verdicts = defaultdict(list)
    for sample in samples:
        for text in set(sample.rollout.steps.texts):
            verdicts[text].append(sample.outcome or 0.0)
    wrong = {text: 1 - sum(found) / len(found) for text, found in verdicts.items()}
    return [[wrong[text] for text in sample.rollout.steps.texts] for sample in samples]
