"""python -m entrypoints.rerun KEY=VALUE ... (see conf/rerun.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("rerun")
