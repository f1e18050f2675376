"""The image, compose and Kubernetes: right by linters and schemas, and by the settings of the daemon."""

import copy
import json
import re
import subprocess
import sysconfig
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from processor import config
from processor.drain import _FLUSH_SECONDS, _GOODBYE_SECONDS, _SAVE_SECONDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE_SCHEMA = Path(__file__).parent / "compose" / "compose-spec.json"
OLDEST, NEWEST = "1.30", "1.37"
URL = "https://abcdefgh.supabase.co"


def hadolint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sysconfig.get_path("scripts")) / "hadolint"
    return subprocess.run(
        [program, "--no-color", "--strict-labels", dockerfile], capture_output=True, text=True, check=False
    )


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, rest in re.findall(r"^([A-Z]+) (.*)$", text, flags=re.MULTILINE)]


def last(word: str) -> str:
    return [rest for name, rest in instructions() if name == word][-1]


def image_environment() -> dict[str, str]:
    return dict(part.split("=", 1) for part in last("ENV").split())


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def objects() -> dict[str, dict[str, Any]]:
    """Return the objects of the manifests by their kind."""
    documents = [
        document
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]
    return {document["kind"]: document for document in documents}


def pod() -> dict[str, Any]:
    return objects()["StatefulSet"]["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    [only] = pod()["containers"]
    return only


def settings(environment: dict[str, str], key: Path) -> config.Settings:
    """Read the settings as the daemon would; a name that it does not know is an error."""
    key.write_text("sb_secret_x")
    given = {"SUPABASE_URL": URL, "SUPABASE_SERVICE_ROLE_KEY_FILE": str(key)}
    return config.load(environment={**environment, **given})


# -- the image ------------------------------------------------------------------------------------


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    found = hadolint(DOCKERFILE)
    assert found.returncode == 0, found.stdout


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.read_text().replace("USER 10001:10001", "USER root"))
    assert "DL3002" in hadolint(bad).stdout


def test_the_image_runs_as_nobody_and_has_only_what_the_wheel_brought() -> None:
    assert last("USER") == "10001:10001"
    copied = [rest for word, rest in instructions() if word == "COPY"]
    assert copied == [
        "constraints.txt dist/supabase_job_processor-*.whl /build/",
        "--from=install /opt/processor /opt/processor",
    ]
    sources = copied[0].split()[:-1]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert [source for source in allowed if not source.endswith("/")] == sources
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_settings_of_the_image_are_settings(tmp_path: Path) -> None:
    read = settings(image_environment(), tmp_path / "key")
    assert (read.http_port, read.http_host) == (8080, "0.0.0.0")
    assert str(read.spool_dir) == last("VOLUME")
    assert last("EXPOSE") == str(read.http_port)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_says_what_healthz_says(status: int, code: int) -> None:
    class Healthz(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthz) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"PROCESSOR_HTTP_PORT": str(server.server_port), "PATH": sysconfig.get_path("scripts")}
        ended = subprocess.run(command, env=environment, capture_output=True, check=False)
        server.shutdown()
    assert ended.returncode == code, ended.stderr


# -- compose --------------------------------------------------------------------------------------


def test_the_compose_file_fits_the_schema_of_its_specification() -> None:
    schema = jsonschema.Draft7Validator(json.loads(COMPOSE_SCHEMA.read_text()))
    schema.validate(compose())
    wrong = compose()
    wrong["services"]["processor"]["stop_grace"] = "60s"
    with pytest.raises(jsonschema.ValidationError, match="stop_grace"):
        schema.validate(wrong)


def test_compose_stops_a_daemon_no_sooner_than_it_has_drained(tmp_path: Path) -> None:
    service = compose()["services"]["processor"]
    read = settings({**image_environment(), **of_processor(service["environment"])}, tmp_path / "key")
    assert int(service["stop_grace_period"].removesuffix("s")) >= drain_seconds(read)
    assert f"spool:{read.spool_dir}" in service["volumes"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKERFILE)


def test_no_key_is_in_an_environment() -> None:
    names = {entry["name"] for entry in container()["env"]} | set(
        compose()["services"]["processor"]["environment"]
    )
    assert not {name for name in names if "KEY" in name and not name.endswith("_FILE")}


# -- Kubernetes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    assert set(objects()) == {"Service", "StatefulSet", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    for document in objects().values():
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_word_in_a_manifest_would_be_found() -> None:
    wrong = copy.deepcopy(objects()["StatefulSet"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_kubernetes_stops_a_daemon_no_sooner_than_it_has_drained(tmp_path: Path) -> None:
    given = {entry["name"]: entry["value"] for entry in container()["env"] if "value" in entry}
    read = settings({**image_environment(), **of_processor(given)}, tmp_path / "key")
    assert pod()["terminationGracePeriodSeconds"] >= drain_seconds(read)
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert mounts["spool"] == str(read.spool_dir)
    assert given["SUPABASE_SERVICE_ROLE_KEY_FILE"].startswith(mounts["key"] + "/")
    assert {port["name"]: port["containerPort"] for port in container()["ports"]} == {"http": read.http_port}


def test_the_probes_ask_what_they_are_for() -> None:
    asked = {
        name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
    }
    assert asked == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_the_objects_of_kubernetes_mean_the_same_pods() -> None:
    made = objects()
    labels = made["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert made["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert made["Service"]["spec"]["selector"] == labels
    target = made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", made["StatefulSet"]["metadata"]["name"])
    assert "replicas" not in made["StatefulSet"]["spec"]  # applying it again must not undo the autoscaler


def of_processor(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("PROCESSOR_")}


def drain_seconds(read: config.Settings) -> float:
    """Return how long the end of a daemon may take: both graces, and what it writes after them."""
    return (
        read.grace_seconds + read.cancel_grace_seconds + 1 + _FLUSH_SECONDS + _SAVE_SECONDS + _GOODBYE_SECONDS
    )
