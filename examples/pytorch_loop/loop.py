"""Step credit in a bare PyTorch loop: a small network learns running sums mod 10 with the loss of capo_kernels.

    digits 7 5 9 4     solution 2 1 5     answer 5

Each token of a solution is a step: the previous sum plus the next digit. A step is wrong if its own addition is wrong,
independent of earlier steps. An answer is right if the last sum is right.
"""

import argparse

import torch
from torch import nn

import capo_kernels as ck

PROMPTS, SAMPLES, STEPS = 64, 8, 4
SPEC = ck.LossSpec(clip_low=0.2, clip_high=0.28, entropy_coef=0.2)


class Policy(nn.Module):
    """Logits [T, 10] of the next sum, from the previous sum and the next digit, both int64 [T]."""

    def __init__(self):
        super().__init__()
        self.sums, self.digits = nn.Embedding(10, 32), nn.Embedding(10, 32)
        self.head = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, before, digit):
        return self.head(torch.cat([self.sums(before), self.digits(digit)], dim=-1))


@torch.no_grad()
def sample(policy, digits):
    """Solutions [B, STEPS + 1] of digits [B, STEPS + 1]; the first column is the first digit."""
    sums = [digits[:, 0]]
    for digit in digits[:, 1:].unbind(1):
        sums.append(torch.multinomial(policy(sums[-1], digit).softmax(-1), 1)[:, 0])
    return torch.stack(sums, dim=1)


def loss_of(policy, digits, sums, process_weight):
    """The loss of solutions; each SAMPLES consecutive ones are a group."""
    before, digit, target = sums[:, :-1].flatten(), digits[:, 1:].flatten(), sums[:, 1:].flatten()
    cu_seqlens = torch.arange(0, len(target) + 1, STEPS, dtype=torch.int32)
    credit = ck.Credit(
        step_starts=torch.ones(len(target), dtype=torch.bool),
        step_wrong=(target != (before + digit) % 10).float(),
        outcome=(sums[:, -1] == digits.sum(1) % 10).float(),
        group=torch.arange(len(sums)) // SAMPLES,
        cu_seqlens=cu_seqlens,
        process_weight=process_weight,
    )
    weights = ck.token_weights(cu_seqlens, torch.ones_like(credit.step_starts), "token-mean")
    return ck.policy_loss(policy(before, digit), target, weights=weights, credit=credit, spec=SPEC).loss


def train(updates, process_weight, every=50):
    """The share of right answers, by update."""
    torch.manual_seed(0)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    right = {}
    for update in range(updates + 1):
        digits = torch.randint(10, (PROMPTS, STEPS + 1)).repeat_interleave(SAMPLES, dim=0)
        sums = sample(policy, digits)
        if update % every == 0:
            right[update] = (sums[:, -1] == digits.sum(1) % 10).float().mean().item()
        optimizer.zero_grad()
        loss_of(policy, digits, sums, process_weight).backward()
        optimizer.step()
    return right


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=300)
    updates = parser.parse_args().updates
    steps, answers = train(updates, process_weight=1.0), train(updates, process_weight=0.0)
    print("update  right answers with step credit  with the answer alone")
    for update in steps:
        print(f"{update:>6}  {steps[update]:>30.2f}  {answers[update]:>21.2f}")


if __name__ == "__main__":
    main()
