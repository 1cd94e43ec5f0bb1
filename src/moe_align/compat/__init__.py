"""Drop-in adapters: the names, signatures and sentinels of the engines, and nothing else."""
