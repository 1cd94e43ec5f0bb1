"""The figures that are published, by somebody else's clock."""

import json

import pytest

from tests.tracking import processes
from tests.tracking.cupti import Row


@pytest.mark.gpu(gib=8)
@pytest.mark.alone
def test_the_clocks_agree_on_the_projects_kernels():
    script = ["-m", "tests.benchmarks.cupti_script"]
    printed = processes.output(*script, path=[processes.ROOT / "src", processes.ROOT])
    rows = {name: Row(**row) for name, row in json.loads(printed.splitlines()[-1]).items()}
    print(*(f"{name}: {row}" for name, row in rows.items()), sep="\n")
    assert len(rows) == 5
    for row in rows.values():
        row.check()
