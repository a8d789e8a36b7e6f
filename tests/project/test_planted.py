"""Every planted fault applies to the code. `python -m tests.planted` checks that the tests detect them."""

from __future__ import annotations

import pytest
from planted.faults import ROOT, Fault, read_faults


@pytest.mark.parametrize("fault", read_faults(), ids=lambda fault: fault.name)
def test_a_fault_fits_the_code_and_names_tests_that_exist(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    assert fault.spoil(text) != text
    assert all((ROOT / test.partition("::")[0]).exists() for test in fault.tests)


def test_there_are_at_least_forty_faults() -> None:
    assert len(read_faults()) >= 40
