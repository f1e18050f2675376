"""The dashboard: Grafana knows every field, Prometheus every query, and every metric is shown."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.ops.test_prometheus_rules import METRIC, ROOT, base, documented, promtool

TEXT = (ROOT / "ops" / "grafana" / "processor.json").read_text()
DASHBOARD = json.loads(TEXT)
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]


def lost(here: Any, there: Any, path: str = "") -> Iterator[str]:
    """Tell what of ``here`` is not ``there``."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key, value in here.items():
            if key in there:
                yield from lost(value, there[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for number, (mine, yours) in enumerate(zip(here, there, strict=True)):
            yield from lost(mine, yours, f"{path}[{number}]")
    elif here != there:
        yield f"{path}: {here!r}"


def read_by_grafana(dashboard: dict[str, Any]) -> dict[str, Any]:
    plugins.register_default_plugins()
    return json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard)))


def test_grafana_knows_every_field():
    """Its own types drop what they do not know."""
    assert list(lost(DASHBOARD, read_by_grafana(DASHBOARD))) == []


def test_a_field_that_grafana_does_not_know_is_noticed():
    wrong = json.loads(TEXT.replace('"legendFormat"', '"legend_format"', 1))
    assert [path.rpartition(".")[2] for path in lost(wrong, read_by_grafana(wrong))] == ["legend_format"]


def test_prometheus_reads_every_query(tmp_path):
    queries = [
        target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")
        for target in TARGETS
    ]
    assert not any("$" in query for query in queries)
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    answer = promtool("check", "rules", file)
    assert answer.returncode == 0, answer.stderr
    rules[0]["expr"] += ")"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert promtool("check", "rules", file).returncode != 0


def test_it_shows_every_metric_there_is_and_no_other():
    shown = {base(name) for target in TARGETS for name in METRIC.findall(target["expr"])}
    assert {name for name in shown if name.startswith("processor_")} == documented()


def test_every_query_is_of_the_chosen_project():
    for target in TARGETS:
        expr = target["expr"]
        for name, labels in re.findall(r"\b(process(?:or)?_\w+)(\{[^}]*\})?", expr):
            assert 'job=~"$job"' in labels, f"{name} in {expr}"
            # what is the database's own comes from any one daemon
            assert ('instance=~"$instance"' in labels) is not name.startswith("processor_database_"), expr


def test_a_database_wide_figure_is_never_added_up_over_daemons():
    for target in TARGETS:
        assert not re.search(
            r"\bsum ?(?:by \([^)]*\) )?\((?:rate\(|increase\()?processor_database_", target["expr"]
        )


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel):
    assert len(panel["description"]) > 8
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    for target in panel["targets"]:
        grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert label == "instance" or any(label in names.split(", ") for names in grouped)


def test_panels_lie_in_their_rows_beside_each_other():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Work", "Latency", "Errors", "Feed", "API", "Credits", "Process", "Events"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
