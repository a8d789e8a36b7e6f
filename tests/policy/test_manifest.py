"""Manifests: damage to any file of a checkpoint is found and named before loading; other formats are refused."""

from __future__ import annotations

import json
import os

import pytest

from capo_fast.policy.manifest import (
    MANIFEST,
    SECTIONS,
    DamagedError,
    FormatError,
    Manifest,
    _body_digest,
    check_file,
    check_sizes,
    read_manifest,
    steps_in,
    write_json,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of step 2 whose sections are numbers."""
    files = {f"{role}.json": write_json(tmp_path / f"{role}.json", role, i) for i, role in enumerate(sorted(SECTIONS))}
    write_manifest(tmp_path, Manifest(2, 1, files))
    return tmp_path


def check(folder):
    manifest = read_manifest(folder, 2)
    for name, entry in manifest.files.items():
        check_file(folder, name, entry)


def forge(folder, change):
    """Change the manifest and recompute its digest."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["digest"]
    change(body)
    (folder / MANIFEST).write_text(json.dumps(body | {"digest": _body_digest(body)}))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x41
    path.write_bytes(data)


def link(path):
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def make_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "head": lambda path: flip(path, 0),
    "tail": lambda path: flip(path, -1),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "other": lambda path: path.write_text("7" if path.stem != "rng" else "0"),
    "link": link,
    "fifo": fifo,
    "folder": make_folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", [MANIFEST, "rng.json"])
def test_every_damage_is_found_and_named(file, damage, folder):
    check(folder)
    DAMAGE[damage](folder / file)
    with pytest.raises(DamagedError, match=rf"{file}.* (damaged|can't be read|is not a regular file)"):
        check(folder)


def test_every_flipped_bit_of_a_manifest_is_found(folder):
    whole = (folder / MANIFEST).read_bytes()
    for at in range(0, len(whole), 3):
        flip(folder / MANIFEST, at)
        with pytest.raises(DamagedError, match=MANIFEST):
            check(folder)
        (folder / MANIFEST).write_bytes(whole)


def test_two_swapped_files_are_found(folder):
    for source, target in (("rng", "swap"), ("model", "rng"), ("swap", "model")):
        (folder / f"{source}.json").rename(folder / f"{target}.json")
    with pytest.raises(DamagedError, match=r"(rng|model)\.json is damaged: digest"):
        check(folder)
    check_sizes(folder, read_manifest(folder, 2))


@pytest.mark.parametrize("name", ["../rng.json", "/etc/hostname", "..", "a/b", "", MANIFEST])
def test_a_name_that_leaves_the_folder_is_refused(name, folder):
    forge(folder, lambda body: body["files"].update({name: body["files"]["rng.json"]}))
    with pytest.raises(DamagedError, match="wanted one in its own folder"):
        read_manifest(folder, 2)


def test_a_checkpoint_of_another_step_or_without_a_section_is_damaged(folder):
    with pytest.raises(DamagedError, match="is of step 2, wanted step 3"):
        read_manifest(folder, 3)
    forge(folder, lambda body: body["files"].pop("optimizer.json"))
    with pytest.raises(DamagedError, match="has no file of section optimizer"):
        read_manifest(folder, 2)


def test_other_formats_and_sections_are_named(folder):
    forge(folder, lambda body: body["files"]["rng.json"].update(role="engine"))
    with pytest.raises(FormatError, match=r"unknown section 'engine' \(rng\.json\), wanted inputs, learner, "):
        read_manifest(folder, 2)
    forge(folder, lambda body: body.update(version=2))
    with pytest.raises(FormatError, match="is of version 2, wanted version 1"):
        read_manifest(folder, 2)
    (folder / MANIFEST).rename(folder / ".metadata")
    with pytest.raises(FormatError, match="is of an older format, with pickled data, wanted version 1"):
        read_manifest(folder, 2)


def test_only_folders_with_exact_names_are_steps(tmp_path):
    for name in ("step_000002", "step_1000000", "step_2", "step_0000003", "step_000001.damaged", ".step_000004.tmp"):
        (tmp_path / name).mkdir()
    assert steps_in(tmp_path) == [2, 1_000_000]
