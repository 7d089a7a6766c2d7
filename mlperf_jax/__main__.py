"""`python -m mlperf_jax` is the `mlperf-jax` command."""

import sys

if __name__ == "__main__":  # reader processes import this module again
    try:
        from mlperf_jax.cli import main
    except KeyboardInterrupt:
        print("mlperf-jax: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(main())
