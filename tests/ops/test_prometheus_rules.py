"""The alerts of ``ops/prometheus``: each comes and goes, names metrics there are, and tells what to do."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.texts import ROOT, blocks

PROMETHEUS = ROOT / "ops" / "prometheus"
RUNBOOK = ROOT / "ops" / "RUNBOOK.md"
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
CASES = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
METRIC = re.compile(r"\bprocess(?:or)?[_:][a-z0-9_:]+")
EXPECTED = re.compile(r'ALERTS\{alertname="(\w+)", alertstate="firing"')


def promtool(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    if shutil.which("promtool") is None:
        missing = "needs promtool; on Debian: apt-get install --no-install-recommends prometheus"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def complaints(directory: Path, rules: dict[str, Any], cases: dict[str, Any]) -> str:
    """Return what promtool has to say against other rules, or other cases."""
    (directory / "rules.yml").write_text(json.dumps(rules))
    (directory / "rules_test.yml").write_text(json.dumps(cases))
    return promtool("test", "rules", directory / "rules_test.yml").stderr


def test_prometheus_reads_the_rules():
    answer = promtool("check", "rules", "--lint-fatal", PROMETHEUS / "rules.yml")
    assert answer.returncode == 0, answer.stderr
    assert f"{len(ALERTS) + len(RECORDED)} rules found" in answer.stdout


def test_each_alert_comes_and_goes():
    answer = promtool("test", "rules", PROMETHEUS / "rules_test.yml")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_alert_is_seen_firing_and_then_gone():
    seen: Counter[str] = Counter()
    for case in CASES["tests"]:
        asked = case["promql_expr_test"]
        alert = EXPECTED.search(asked[0]["expr"]).group(1)
        firing = [number for number, question in enumerate(asked) if question["exp_samples"]]
        assert not asked[-1]["exp_samples"], f"{case['name']}: it is not seen to end"
        if firing:
            assert alert in asked[firing[0]]["exp_samples"][0]["labels"]
            seen[alert] += 1
    assert set(seen) == set(ALERTS)


@pytest.mark.parametrize("broken", ["vector(0) > 1", 'label_replace(vector(1), "job", "processor", "", "")'])
def test_an_alert_that_never_fires_or_always_does_is_noticed(broken, tmp_path):
    """What a slip of the pen would do: without this, a case that asks for nothing would pass for ever."""
    rules = deepcopy(RULES)
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        rule["expr"] = broken
    told = complaints(tmp_path, rules, CASES)
    assert [alert for alert in ALERTS if f'alertname=\\"{alert}\\"' not in told] == []


def test_how_many_due_jobs_are_too_many_is_changed_in_one_place(tmp_path):
    rules = deepcopy(RULES)
    [limit] = [
        rule for rule in rules["groups"][0]["rules"] if rule["record"] == "processor:queue_depth:limit"
    ]
    assert limit["expr"] == "vector(20)"
    limit["expr"] = "vector(9999)"
    told = complaints(tmp_path, rules, CASES)
    assert set(re.findall(r'alertname=\\"(\w+)\\"', told)) == {"ProcessorQueueDeep"}, told


def test_the_autoscaler_asks_for_a_metric_that_there_is(tmp_path):
    autoscaler = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "autoscaler.yaml").read_text())
    [asked] = [metric["external"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"]]
    [example] = blocks("deploy/README.md", "yaml")["Kubernetes"]
    [rule] = yaml.safe_load(example)["externalRules"]
    assert rule["name"]["as"] == asked
    series = rule["seriesQuery"].partition("{")[0]
    assert series in documented()
    assert "`due`" in (ROOT / "ops" / "METRICS.md").read_text().split(f"`{series}`")[1].split("\n")[0]
    query = rule["metricsQuery"].replace("<<.Series>>", series)
    two_daemons_of_one_project = {
        "interval": "1m",
        "input_series": [
            {"series": f'{series}{{queue="{queue}", state="due", instance="{instance}"}}', "values": jobs}
            for queue, instance, jobs in (("a", "vm-1", "7"), ("a", "vm-2", "7"), ("b", "vm-1", "5"))
        ],
        "promql_expr_test": [
            {"expr": query, "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": 12}]}
        ],
    }
    cases = {"rule_files": ["rules.yml"], "tests": [two_daemons_of_one_project]}
    assert complaints(tmp_path, RULES, cases) == ""


def test_every_alert_says_how_bad_it_is_what_it_means_and_what_to_do():
    for alert, rule in ALERTS.items():
        assert alert.startswith("Processor")
        assert rule["labels"] == {"severity": rule["labels"]["severity"]}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, alert
        assert len(rule["annotations"]["description"]) > 80, alert
        assert re.fullmatch(r"ops/RUNBOOK\.md#[a-z0-9-]+", rule["annotations"]["runbook"]), alert


def test_annotations_are_filled_in(tmp_path):
    """Asked for an alert without annotations, promtool prints those that it got."""
    cases = deepcopy(CASES)
    for case in cases["tests"]:
        asked = case.pop("promql_expr_test")
        case["alert_rule_test"] = [
            {"eval_time": question["eval_time"], "alertname": EXPECTED.search(question["expr"]).group(1)}
            for question in asked
            if question["exp_samples"]
        ]
    told = complaints(tmp_path, RULES, cases)
    for alert in ALERTS:
        assert f"alertname: {alert}," in told
    assert "vm-1:9800 is not woken by Realtime and polls" in told
    assert "A job of queue default has been due for 8m 0s" in told
    assert "Jobs of kind translate take 2m 30s per item" in told
    assert "16.67% of the attempts in queue default fail" in told
    assert "<error" not in told
    assert "no value" not in told


def test_every_metric_that_is_asked_for_exists():
    known = documented() | RECORDED
    for rule in (rule for group in RULES["groups"] for rule in group["rules"]):
        asked = {base(name) for name in METRIC.findall(rule["expr"])}
        assert asked <= known, rule
    assert {base(name) for case in CASES["tests"] for series in case["input_series"]
            for name in METRIC.findall(series["series"])} <= known  # fmt: skip


def test_every_link_to_the_run_book_leads_to_a_section():
    if not RUNBOOK.exists():
        pytest.skip("ops/RUNBOOK.md is not there yet")
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert {rule["annotations"]["runbook"].partition("#")[2] for rule in ALERTS.values()} <= anchors


def test_what_the_database_tells_of_has_the_same_names():
    files = sorted((ROOT / "sql").glob("*alerts.sql"))
    told = {name for file in files for name in re.findall(r"'(Processor[A-Z]\w+)'", file.read_text())}
    assert len(told) > 10
    assert told - set(ALERTS) == {"ProcessorScheduleStuck"}, "there is no metric of schedules"


def documented() -> set[str]:
    """Return the names in the tables of ops/METRICS.md."""
    return set(re.findall(r"^\| `(processor_\w+)`", (ROOT / "ops" / "METRICS.md").read_text(), re.MULTILINE))


def base(name: str) -> str:
    """Return a metric's name without what a histogram adds to it."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_prometheus_takes_the_configuration_of_the_readme(tmp_path):
    (tmp_path / "rules.yml").write_text((PROMETHEUS / "rules.yml").read_text())
    [example] = blocks("ops/README.md", "yaml")["With Prometheus"]
    (tmp_path / "prometheus.yml").write_text(example)
    answer = promtool("check", "config", tmp_path / "prometheus.yml")
    assert answer.returncode == 0, answer.stderr
    assert "rules found" in answer.stdout
