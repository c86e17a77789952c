"""The native stack: ZooKeeper, Kafka, HDFS and Spark as plain processes of this machine, loopback only, no Docker.

`python -m stack up|down|status|doctor|reset|env`. Everything it writes lies in `var/` (or HIGHWATER_VAR) and `lib/`.
It knows nothing of the engine but the reader of `.env`, and never starts Spark code of its own.
"""
