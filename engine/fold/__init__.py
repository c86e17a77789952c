"""The arithmetic that all layers share: decode, judge, find duplicates, fold to measures. Imports `domain` alone."""
