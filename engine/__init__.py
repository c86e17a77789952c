"""The arithmetic and the storage rules that two or more layers share."""
