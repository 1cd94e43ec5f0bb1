"""Benchmark types for asv; asv_runner loads every module here by itself."""
