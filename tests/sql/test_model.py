"""A model in Python predicts every answer and every row, over random programs of clients, workers, operators.

Hypothesis writes the programs from numbers. In the gate they are the same every time, and one that fails is
printed as it is. To run others, and to have one that fails made short:

    MODEL_PROGRAMS=1000-1200 python -m pytest tests/sql/test_model.py -k wheel --timeout 0

In ``tests/sql/model`` ``world`` is what should be true, ``rules`` are the calls, ``machine`` compares.
"""

import os

import pytest

from tests.sql.model.machine import arena, run_programs
from tests.sql.model.rules import Everything

IN_THE_GATE = {"wheel": "1-5", "debian15": "6-6"}


@pytest.mark.timeout(600)
def test_every_answer_and_every_row_is_as_the_model_says(server, request):
    chosen = os.environ.get("MODEL_PROGRAMS")
    first, last = (chosen or IN_THE_GATE[request.node.callspec.params["server"]]).split("-")
    with arena(server.dsn("jobs_shared")) as opened:
        for number in range(int(first), int(last) + 1):
            try:
                run_programs(Everything, opened, number, shorten=bool(chosen))
            except BaseException as error:
                error.add_note(f"MODEL_PROGRAMS={number}-{number}")
                raise
