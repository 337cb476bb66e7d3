"""python -m entrypoints.lock KEY=VALUE ... (see conf/lock.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("lock")
