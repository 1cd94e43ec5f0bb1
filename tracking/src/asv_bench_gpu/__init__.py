"""What airspeed velocity lacks for GPU kernels: device time, verification first, a history that loses nothing."""

# asv_runner loads the benchmark types of this package while it is imported itself. Importing it first makes that work
# whichever of the two a program imports; otherwise the types would be missing without a word.
import asv_runner.benchmarks  # noqa: F401

__version__ = "0.1.0"
