"""python -m entrypoints NAME [-P KEY=VALUE ...]: what ./run does."""

import sys

from slmflow.mlflow_run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
