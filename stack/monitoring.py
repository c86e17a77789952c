"""How does a Prometheus watch the native stack? With the very configuration of Compose, asked at this stack's ports.

    python -m stack monitor         writes the configuration and runs the `prometheus` that is installed, until Ctrl-C

Without one, any Prometheus of this machine can be given the file.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from stack.settings import HOST, Settings, StackError

# Where Compose finds a page → setting of the port where it is natively.
PAGES = {
    "producer:8082": "PRODUCER_METRICS_PORT",
    "ingest:8083": "INGEST_METRICS_PORT",
    "stream:8084": "STREAM_METRICS_PORT",
    "batch:8085": "BATCH_METRICS_PORT",
    "serving:8000": "SERVING_PORT",
    "kafka-exporter:5556": "KAFKA_METRICS_PORT",
    "namenode:9870": "NAMENODE_UI_PORT",
    "datanode:9864": "DATANODE_HTTP_PORT",
    "spark-master:8080": "SPARK_MASTER_UI_PORT",
    "spark-worker:8081": "SPARK_WORKER_UI_PORT",
}
# Drivers take the first free port from 4040 on, in the order in which they start.
DRIVERS = {"ingest:4040": 4040, "stream:4040": 4041, "batch:4040": 4042}


def scrape_config(settings: Settings) -> str:
    """Return monitoring/prometheus.yml with this stack's addresses; a page whose port is 0 is left out."""
    source = settings.root / "monitoring" / "prometheus.yml"
    where: dict[str, int] = {page: {**settings.ports, **settings.layer_ports}[name] for page, name in PAGES.items()}

    def native(found: re.Match[str]) -> str:
        port = (where | DRIVERS)[found[0]]
        return f"localhost:{port}" if port else ""

    pages = "|".join(map(re.escape, where | DRIVERS))
    text = re.sub(pages, native, source.read_text())
    return text.replace("[alerts.yml]", f"[{source.with_name('alerts.yml')}]").replace('targets: [""]', "targets: []")


def write_scrape_config(settings: Settings) -> Path:
    """Write the configuration below var/conf; returns where."""
    path = settings.conf / "prometheus" / "prometheus.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(scrape_config(settings))
    return path


def run(settings: Settings) -> None:
    """Become the Prometheus of this stack, on loopback; its data lies in var/prometheus.

    Raises:
        StackError: there is no `prometheus` on the PATH.
    """
    config = write_scrape_config(settings)
    program = shutil.which("prometheus")
    if program is None:
        raise StackError(
            f"prometheus: not installed; get it from your system's packages, or give a Prometheus this file: {config}"
        )
    address = f"{HOST}:{settings.port('PROMETHEUS_PORT')}"
    folder = settings.var / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"prometheus: http://{address}/ asks what {config} names; Ctrl-C ends it", flush=True)
    os.execv(
        program,
        [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ],
    )
