"""The stack and the Kubernetes example: each file by its program or schema, and what it promises.

What cannot be checked so are the files of Grafana, Loki, Tempo and the collector: their programs
are in no package. Of them it is only seen that they name one another rightly.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compose_spec
import kubernetes_validate
import pytest
import yaml

from grafana.managed_alerts import DATASOURCE
from grafana.written import FOLDER
from tests.monitoring import free_port, program, serving
from tests.processes import until
from tracedjobs import Runtime

if TYPE_CHECKING:
    from tests.stores.redis_servers import RedisServer

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DEPLOY = ROOT / "deploy"
ON_KUBERNETES = ROOT / "examples" / "kubernetes"
ASKED_BY_READY = {"collector", "loki", "tempo"}
"""Their images have nothing that could ask them."""


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = loaded(COMPOSE)["services"]
    return found


def test_the_stack_is_a_compose_file_by_the_specification() -> None:
    # Anchors and extensions are resolved before, as Compose does it.
    spec = {key: value for key, value in loaded(COMPOSE).items() if not key.startswith("x-")}
    compose = compose_spec.PyCompose.from_yaml(yaml.safe_dump(spec))
    assert set(compose.service_names()) == set(spec["services"])
    spec["services"]["redis"]["imagee"] = "redis"
    with pytest.raises(ValueError, match="imagee"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(spec))


def test_versions_are_pinned_and_each_service_is_watched(services: dict[str, Any]) -> None:
    for name, service in services.items():
        image = service["image"]
        assert re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", image) or image == "tracedjobs:local", name
        assert ("healthcheck" in service) != (name in ASKED_BY_READY), name
        for other, how in _needed(service).items():
            watched = services[other].get("healthcheck", {}).get("test")
            assert how != "service_healthy" or watched, (name, other)
    asked = " ".join(services["ready"]["command"])
    assert set(re.findall(r"http://(\w+):", asked)) == ASKED_BY_READY


def test_ports_are_on_loopback_and_nobody_is_let_in(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert "127.0.0.1:3000:3000" in ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    grafana = services["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert (grafana["GF_AUTH_DISABLE_LOGIN_FORM"], grafana["GF_AUTH_BASIC_ENABLED"]) == (
        "true",
        "false",
    )


def test_what_is_mounted_is_there_and_what_is_kept_has_a_name(services: dict[str, Any]) -> None:
    volumes = set(loaded(COMPOSE)["volumes"])
    used = set()
    for name, service in services.items():
        for mounted in service.get("volumes", ()):
            source = mounted.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), (name, source)
                assert mounted.endswith(":ro"), (name, mounted)
            else:
                used.add(source)
    assert used == volumes


def test_commands_are_lists_so_that_the_program_itself_gets_signals(
    services: dict[str, Any],
) -> None:
    for name, service in services.items():
        assert isinstance(service.get("command", []), list), name
        assert service.get("healthcheck", {}).get("test", ["CMD"])[0] == "CMD", name
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    last = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
    for command in re.findall(r"^(?:CMD|ENTRYPOINT) (.+)$", last, re.MULTILINE):
        assert json.loads(command)
    copied = {each for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
              for each in line.split()}  # fmt: skip
    allowed = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for each in copied:
        assert (ROOT / each).exists(), each
        assert f"!{each}" in allowed, each


def test_prometheus_and_alertmanager_accept_their_files(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text((DEPLOY / "prometheus/prometheus.yml").read_text())
    rules = (FOLDER / "alerts" / "tracedjobs.rules.yml").read_text("utf-8")
    (tmp_path / "tracedjobs.rules.yml").write_text(rules)
    checks = [[program("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]]
    checks += [
        [program("amtool"), "check-config", str(path)]
        for path in (DEPLOY / "alertmanager").glob("*.yml")
    ]
    for check in checks:
        done = subprocess.run(check, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_the_two_lines_of_the_page_are_all_that_prometheus_needs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "grafana.md").read_text("utf-8")
    (lines,) = re.findall(r"```yaml\n(.+?)```", page, re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(lines)
    rules = (FOLDER / "alerts" / "tracedjobs.rules.yml").read_text("utf-8")
    (tmp_path / "tracedjobs.rules.yml").write_text(rules)
    done = subprocess.run(
        [program("promtool"), "check", "config", str(tmp_path / "prometheus.yml")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "13 rules found" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("severity", "receivers"), [("critical", "pagerduty,slack"), ("warning", "slack")]
)
def test_the_example_routes_send_alerts_where_they_say(severity: str, receivers: str) -> None:
    config = DEPLOY / "alertmanager" / "slack-pagerduty.yml"
    words = [
        "config",
        "routes",
        "test",
        f"--config.file={config}",
        f"--verify.receivers={receivers}",
    ]
    done = subprocess.run(
        [program("amtool"), *words, f"severity={severity}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_the_other_configurations_name_one_another_rightly(services: dict[str, Any]) -> None:
    collector = loaded(DEPLOY / "collector" / "collector.yml")
    for pipeline in collector["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(collector[kind])
    assert set(collector["service"]["extensions"]) == set(collector["extensions"])
    sources = loaded(DEPLOY / "grafana" / "datasources" / "tracedjobs.yml")["datasources"]
    assert DATASOURCE in {each["uid"] for each in sources}
    texts = [path.read_text("utf-8") for path in DEPLOY.rglob("*.yml")] + [COMPOSE.read_text()]
    hosts = set(re.findall(r"(?:http://|endpoint: |targets: \[\")(\w+):\d+", "\n".join(texts)))
    assert hosts - {"127", "0"} <= set(services)
    (provider,) = loaded(DEPLOY / "grafana" / "dashboards" / "tracedjobs.yml")["providers"]
    mounted = " ".join(services["grafana"]["volumes"])
    assert f"./tracedjobs/grafana/dashboards:{provider['options']['path']}:ro" in mounted
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / "dashboards" / Path(home).name).is_file()
    for page in re.findall(r"/d/tracedjobs-([\w-]+)\?var-(\w+)=", "\n".join(texts)):
        assert page in {("job", "job_id"), ("trace", "trace_id")}


@pytest.mark.parametrize("path", sorted(ON_KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
def test_kubernetes_objects_are_by_its_schemas(path: Path) -> None:
    """Those of Kubernetes itself; of the operator's two the schemas are in no package."""
    made = loaded(path)
    if made["apiVersion"].startswith("monitoring.coreos.com/"):
        assert made["kind"] in {"PodMonitor", "PrometheusRule"}
        return
    kubernetes_validate.validate(made, "1.30", strict=True)
    if made["kind"] == "Deployment":
        pod = made["spec"]["template"]
        assert made["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["spec"]["containers"]
        assert isinstance(container["command"], list)
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_operator_finds_the_exporters_pods_and_their_port() -> None:
    monitor = loaded(ON_KUBERNETES / "podmonitor.yaml")["spec"]
    exporter = loaded(ON_KUBERNETES / "exporter.yaml")["spec"]["template"]
    assert monitor["selector"]["matchLabels"] == exporter["metadata"]["labels"]
    ports = {each["name"] for each in exporter["spec"]["containers"][0]["ports"]}
    assert {each["port"] for each in monitor["podMetricsEndpoints"]} == ports
    rule = loaded(ON_KUBERNETES / "rules.yaml")
    assert rule["spec"] == loaded(FOLDER / "alerts" / "tracedjobs.rules.yml")


def test_the_demonstration_runs_on_a_real_worker(redis_server: RedisServer, tmp_path: Path) -> None:
    """As the stack starts it, but for the pool, which takes longer to start."""
    (tmp_path / "run").mkdir(mode=0o700)
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{DEPLOY / 'demo'}",
        "TRACEDJOBS_STORE": f"{redis_server.url}?prefix=demo{os.urandom(4).hex()}",
        "TRACEDJOBS_RUN_DIR": str(tmp_path / "run"),
        "BROKER": redis_server.url.rpartition("/")[0] + "/7",
        "OTEL_SDK_DISABLED": "true",
    }
    submit = "from tasks import *; print(send_mails.delay(4), import_orders.delay(9, 0.0))"
    said = subprocess.run(
        [sys.executable, "-c", submit], env=env, check=True, capture_output=True, text=True
    )
    celery = [sys.executable, "-m", "celery", "--app=tasks", "worker", "--queues=imports,mails"]
    with (
        serving([*celery, "--pool=solo"], tmp_path, "worker.log", env=env),
        Runtime(env["TRACEDJOBS_STORE"]) as runtime,
    ):
        mails, orders = said.stdout.split()
        # A mail of some ids fails, which is an interruption at first.
        until(
            lambda: (
                runtime.get(mails).status in {"completed", "interrupted"}
                and runtime.get(orders).status == "completed"
            ),
            f"both jobs: {(tmp_path / 'worker.log').read_text()}",
        )
        assert runtime.get(mails).queue == "mails"
    ast.parse((DEPLOY / "demo" / "load.py").read_text("utf-8"), feature_version=(3, 11))


def test_ready_waits_for_all_and_says_which_is_missing(tmp_path: Path) -> None:
    ready = [sys.executable, str(DEPLOY / "demo" / "ready.py")]
    nobody = f"http://127.0.0.1:{free_port()}/ready"
    assert subprocess.run([*ready, "--once", nobody], check=False).returncode == 1
    file = tmp_path / "submitted"
    assert subprocess.run([*ready, "--age", "60", str(file)], check=False).returncode == 1
    file.touch()
    assert subprocess.run([*ready, "--age", "60", str(file)], check=False).returncode == 0


def _needed(service: dict[str, Any]) -> dict[str, str]:
    needed = service.get("depends_on", {})
    if isinstance(needed, list):
        return dict.fromkeys(needed, "service_started")
    return {name: how["condition"] for name, how in needed.items()}
