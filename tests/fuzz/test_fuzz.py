"""Every reader reads or refuses: its seeds, what is made of them, and a short guided run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "fuzzing"))

import targets  # noqa: E402  # it lies beside the command that fuzzes
from seeds import CORPUS, seeds  # noqa: E402

SEEDS = {f"{path.parent.name}/{path.name}": path for path in sorted(CORPUS.glob("*/*"))}
REFUSED = {"any_frames/web", "rows/deep", "legacy/config"}
RUNS = 2_000
CANNOT_INSTALL = 3


def test_every_target_has_its_seeds_as_they_are_made_now() -> None:
    made = {f"{target}/{name}": data for target, of in seeds().items() for name, data in of.items()}
    assert {name: path.read_bytes() for name, path in SEEDS.items()} == made
    assert seeds().keys() == targets.TARGETS.keys()


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_is_read_unless_it_is_made_to_be_refused(name: str) -> None:
    target = targets.TARGETS[name.partition("/")[0]]
    if name in REFUSED:
        with pytest.raises(targets.REFUSALS):
            target(SEEDS[name].read_bytes())
    else:
        target(SEEDS[name].read_bytes())


@pytest.mark.parametrize("target", targets.TARGETS)
@given(data=st.data())
def test_a_damaged_seed_is_read_or_refused(target: str, data: st.DataObject) -> None:
    paths = sorted((CORPUS / target).iterdir())
    damaged = bytearray(data.draw(st.sampled_from(paths)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    targets.run(target, bytes(damaged))


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_frames_come_back_from_an_input_as_they_were(frames: list[bytes]) -> None:
    assert targets.to_frames(targets.to_bytes(frames)) == frames


@pytest.mark.slow
def test_a_short_run_guided_by_coverage_finds_nothing() -> None:
    command = [ROOT / "scripts" / "fuzz", str(RUNS), "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    if run.returncode == CANNOT_INSTALL:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stdout + run.stderr
    for target in targets.TARGETS:
        assert f"{target:14}{RUNS:>12,}" in run.stdout
