#!/bin/sh
# Spark's configuration of one pod: the file of Compose and the native stack, then what differs here. Of two lines with
# one key Spark takes the later.
set -eu
cd "$(dirname "$0")"
mkdir -p "$SPARK_CONF_DIR"
for file in *.properties executor.yaml; do
    [ ! -e "$file" ] || cp "$file" "$SPARK_CONF_DIR"
done
cat spark-defaults.conf kubernetes*.conf |
    sed "s|{pod_ip}|$POD_IP|g; s|{pod_name}|$POD_NAME|g; s|{namespace}|$NAMESPACE|g; s|{image}|${HIGHWATER_IMAGE:-}|g" \
        >"$SPARK_CONF_DIR/spark-defaults.conf"
