"""What every process needs to run: settings, logs and exit codes, metrics, clients of Kafka and Spark.

Imports `domain` alone.
"""
