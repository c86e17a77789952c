"""The ingest layer: mirrors Kafka into the raw log. Imports `domain`, `storage` and `runtime`, and no other layer."""
