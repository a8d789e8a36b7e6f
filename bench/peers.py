"""Runs the tests of other libraries with the adapters of capo_kernels in place of their functions.

    python -m bench.peers [liger trl verl] [--short] [--folder runs/peers] [--required]

pip downloads the sdist of each library at a pinned version and sha256. Test files that name a replaced function run
under pytest with `bench/peers_plugin.py`, which installs the adapter. Outcomes of a test:

    passed     passed, and it called the adapter
    refused    the adapter does not support its loss_type: ValueError with its name
    beyond     the test expects an error, but the adapter supports the case
    skipped    skipped by the library
    apart      did not call the adapter
    failed     anything else; the exit status is 1

--short: the small sizes, every fifth test. If pip can't download a library, its tests are left out with the reason;
with --required that is an error. FOLDER keeps the sdists, pytest's output and the results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from capo_fast.markdown import markdown_table

ROOT = Path(__file__).parents[1]
OUTCOMES = ("passed", "refused", "beyond", "skipped", "apart", "failed")


@dataclass(frozen=True)
class Peer:
    package: str
    version: str
    sha256: str
    """Digest of the sdist."""
    adapters: Mapping[str, str]
    """`module:name` of the library's function, to `module:name` of its adapter."""

    @property
    def sdist(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def names(self) -> list[str]:
        return [target.partition(":")[2] for target in self.adapters]


PEERS = {
    "liger": Peer(
        "liger-kernel",
        "0.8.5",
        "4e8f8f611a8ad735c37c989410d09820bb08881f131851a3967c34baa7889d66",
        {
            "liger_kernel.chunked_loss:LigerFusedLinearGRPOLoss": "capo_kernels.adapters.liger:CapoFusedLinearGRPOLoss",
            "liger_kernel.transformers.grpo_loss:triton_grpo_loss": "capo_kernels.adapters.liger:triton_grpo_loss",
        },
    ),
    "trl": Peer(
        "trl",
        "1.16.0",
        "999bd4a85b08870b7bfa387e1efa5177d2a4b88fe82b2526a057ac5d3cc600cd",
        {"trl:GRPOTrainer": "capo_kernels.adapters.trl:CapoLossMixin"},
    ),
    "verl": Peer(
        "verl",
        "0.9.1",
        "3e03d8816b2546b2c5580705671b8d0bb3f79b8364e7b5c56dbfc1245536ba22",
        {
            f"verl.{module}:{name}": f"capo_kernels.adapters.verl:{name}"
            for module, name in (
                ("utils.torch_functional", "logprobs_from_logits"),
                ("utils.kernel.linear_cross_entropy", "linear_cross_entropy"),
                ("utils.experimental.torch_functional", "FusedLinearForPPO"),
            )
        },
    ),
}


class Outcome(NamedTuple):
    """A test's file and function, one of OUTCOMES, and the reason."""

    file: str
    name: str
    outcome: str
    reason: str


def fetch(peer: Peer, folder: Path) -> Path:
    """The unpacked sdist. Raises OSError if pip can't download it; exits if its digest is wrong."""
    archive = folder / peer.sdist
    if not archive.exists():
        _download(peer, folder)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != peer.sha256:
        sys.exit(f"{archive}: wrong sha256, wanted {peer.sha256}; remove the file")
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def _download(peer: Peer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    requirement = folder / f"{peer.package}.txt"
    requirement.write_text(f"{peer.package}=={peer.version} --hash=sha256:{peer.sha256}\n")
    # pip compares the digest before it runs the sdist's setup.py for the metadata.
    options = ["--quiet", "--no-deps", "--no-binary=:all:", "--no-build-isolation", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), "-r", str(requirement)]
    found = subprocess.run(command, capture_output=True, text=True)
    errors = [line for line in found.stderr.splitlines() if line.startswith("ERROR")]
    if any("HASHES" in line for line in errors):
        sys.exit(f"{peer.sdist}: wrong sha256, wanted {peer.sha256}")
    if found.returncode:
        raise OSError(errors[0] if errors else f"pip download: exit status {found.returncode}")


def test_files(peer: Peer, source: Path) -> list[Path]:
    """Test files that name a replaced function, relative to `source`."""
    names = re.compile(rf"\b({'|'.join(peer.names)})\b")
    files = (path.relative_to(source) for path in sorted(source.rglob("test_*.py")))
    return [path for path in files if names.search((source / path).read_text(encoding="utf-8"))]


def run(peer: Peer, source: Path, files: Sequence[Path], short: bool) -> list[Outcome]:
    results = source.parent / f"{peer.package}.jsonl"
    results.unlink(missing_ok=True)
    options = ["-p", "no:cacheprovider", "-p", "bench.peers_plugin"]
    options += [f"--adapter={target}={ours}" for target, ours in peer.adapters.items()]
    options += [f"--results={results.resolve()}", *(["--short"] if short else [])]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    with results.with_suffix(".log").open("w") as log:
        status = subprocess.run(command, cwd=source, env=environment, stdout=log, stderr=log).returncode
    if status > 1 or not results.exists():
        sys.exit(f"{peer.package}: pytest exited with status {status}, see {log.name}")
    return [Outcome(**json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]


def table(tests: Sequence[Outcome]) -> str:
    """Tests by outcome, for each file and each function in it."""
    counts = Counter((row, test.outcome) for test in tests for row in (test.file, test.name))
    names = dict.fromkeys(row for test in tests for row in (test.file, test.name))
    rows = [[f"`{name}`", *(str(counts[name, outcome] or "") for outcome in OUTCOMES)] for name in names]
    return markdown_table(["test", *OUTCOMES], rows, right=set(OUTCOMES), padded=True)


def reasons(tests: Sequence[Outcome]) -> str:
    counts = Counter(f"{test.outcome}: {test.reason}" for test in tests if test.reason)
    return "".join(f"- {count} x {text}\n" for text, count in counts.most_common())


def compare(peer: Peer, folder: Path, short: bool) -> bool:
    """Runs the tests of a library and prints the outcomes. False if a test failed."""
    title = f"{peer.package} {peer.version}"
    source = fetch(peer, folder)
    files = test_files(peer, source)
    if not files:
        print(f"{title}: no test of its sdist names {', '.join(peer.names)}")
        return True
    if (installed := _installed(peer.package)) != peer.version:
        sys.exit(f"{peer.package}: found version {installed or 'none'} installed, wanted {peer.version} as its tests")
    tests = run(peer, source, files, short)
    print(f"{title}\n\n{table(tests)}\n{reasons(tests)}", end="")
    found = {test.outcome for test in tests}
    return "passed" in found and "failed" not in found


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"{', '.join(PEERS)}; default: all")
    parser.add_argument("--short", action="store_true", help="the small sizes, every fifth test")
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="default: %(default)s")
    parser.add_argument("--required", action="store_true", help="a failed download is an error")
    arguments = parser.parse_args()
    if unknown := set(arguments.peers) - PEERS.keys():
        parser.error(f"PEER: found {', '.join(sorted(unknown))}, wanted some of {', '.join(PEERS)}")
    good = True
    for name in arguments.peers or PEERS:
        try:
            good &= compare(PEERS[name], arguments.folder, arguments.short)
        except OSError as error:
            print(f"{PEERS[name].package} {PEERS[name].version}: left out, not downloaded: {error}")
            good &= not arguments.required
    sys.exit(not good)


if __name__ == "__main__":
    main()
