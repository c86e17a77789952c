"""What lies on HDFS and is committed by rename: segments, chains of epochs, versions; and whether Kafka continues them.

`commit` is how a segment gets its name, `log` what a log holds and where it lies, `quarantine` how a bad row is shown.
Imports `domain`, `fold` and `runtime`; knows no layer.
"""
