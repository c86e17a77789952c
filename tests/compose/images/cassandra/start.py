"""Translate what the cassandra image reads from the environment, then become the server.

Its addresses are the container's.
"""

import json
import os
import socket
from pathlib import Path

DATA = "/var/lib/cassandra"
here = socket.gethostbyname(socket.gethostname())
settings = json.loads(Path("/etc/standin/cassandra.json").read_text())
settings |= {
    "cluster_name": os.environ.get("CASSANDRA_CLUSTER_NAME", "Test Cluster"),
    "listen_address": here,
    "rpc_address": "0.0.0.0",
    "broadcast_rpc_address": here,
    "seed_provider": [
        {"class_name": "org.apache.cassandra.locator.SimpleSeedProvider", "parameters": [{"seeds": here}]}
    ],
    "data_file_directories": [f"{DATA}/data"],
    **{f"{what}_directory": f"{DATA}/{what}" for what in ("commitlog", "saved_caches", "hints")},
}
file = Path("/tmp/cassandra.yaml")
file.write_text(json.dumps(settings))
options = [
    f"-Xmx{os.environ.get('MAX_HEAP_SIZE', '512m')}",
    *Path("/etc/standin/options").read_text().split(),
    f"-Dcassandra.config={file.as_uri()}",
    f"-Dcassandra.storagedir={DATA}",
    "-Dcassandra.logdir=/tmp",
]
server = "org.apache.cassandra.service.CassandraDaemon"
os.execvp("java", ["java", *options, "-cp", "/etc/standin:/opt/cassandra/lib/*", server])
